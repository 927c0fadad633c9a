"""Reading the images of an `.npz` piece by piece, so that memory does not grow with their number."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from common.errors import UserError

__all__ = ["Header", "header", "stream"]


@dataclass(frozen=True)
class Header:
    """What `arr_0` holds: `count` images of uint8 (H,W,3)."""

    count: int
    size: tuple[int, int]


def header(path: str | Path) -> Header:
    """Look at `arr_0` without reading its images.

    Raises: UserError when the file is missing, damaged, or holds anything but uint8 (N,H,W,3) in C order.
    """
    with _open(path) as (_, found):
        return found


def stream(path: str | Path, batch_size: int) -> Iterator[np.ndarray]:
    """The images of `arr_0` in order, as uint8 (n,H,W,3) with n <= batch_size.

    Raises: UserError as `header`, and when there are fewer images than announced.
    """
    with _open(path) as (member, found):
        step = found.size[0] * found.size[1] * 3
        left = found.count
        while left:
            block = member.read(min(batch_size, left) * step)
            if len(block) != min(batch_size, left) * step:
                raise UserError(f"{str(path)!r} ends before its last image; write it again")
            yield np.frombuffer(block, np.uint8).reshape(-1, *found.size, 3).copy()
            left -= min(batch_size, left)


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[IO[bytes], Header]]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; expected an .npz with 'arr_0' (N,H,W,3) uint8")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran, dtype = read(member)
            if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or fortran or not shape[0]:
                raise UserError(f"{str(path)!r} holds {dtype} {shape}; expected uint8 (N,H,W,3) in C order, N > 0")
            yield member, Header(shape[0], shape[1:3])
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} cannot be read as .npz with 'arr_0' ({error})") from error
