"""Reading the images of an `.npz` piece by piece, so that memory does not grow with their number."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from common.errors import UserError


@dataclass(frozen=True)
class Header:
    """What `arr_0` holds: `count` images of (H,W,3)."""

    count: int
    size: tuple[int, int]


def header(path: str | Path, any_type: bool = False) -> Header:
    """Look at `arr_0` without reading its images.

    Args:
        any_type: also accept numbers other than uint8 and Fortran order, as other people's files hold them.

    Raises: UserError when the file is missing or damaged or holds anything but images (N,H,W,3).
    """
    with _open(path, any_type) as (_, found, _, _):
        return found


def stream(path: str | Path, batch_size: int, any_type: bool = False) -> Iterator[np.ndarray]:
    """The images of `arr_0` in order, (n,H,W,3) with n <= batch_size; uint8, or whatever `any_type` let in.

    Raises: UserError as `header`; when the file ends early; when values are not in 0..255, or seem to be in 0..1.
    """
    with _open(path, any_type) as (member, found, dtype, fortran):
        if fortran:  # its images do not lie one after the other
            shape = (3, found.size[1], found.size[0], found.count)
            whole = np.frombuffer(member.read(), dtype).reshape(shape).transpose(3, 2, 1, 0)
            for start in range(0, found.count, batch_size):
                yield _checked(np.ascontiguousarray(whole[start : start + batch_size]), path)
            return
        step, left = found.size[0] * found.size[1] * 3 * dtype.itemsize, found.count
        while left:
            count = min(batch_size, left)
            block = member.read(count * step)
            if len(block) != count * step:
                raise UserError(f"{str(path)!r} ends before its last image; write it again")
            yield _checked(np.frombuffer(block, dtype).reshape(count, *found.size, 3).copy(), path)
            left -= count


def _checked(block: np.ndarray, path: str | Path) -> np.ndarray:
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all() or block.min() < 0 or block.max() > 255:
        raise UserError(f"{str(path)!r} holds values outside 0..255; expected pixels")
    if block.dtype.kind == "f" and 0 < block.max() <= 1:
        raise UserError(f"{str(path)!r} holds values up to {block.max():g}; expected 0..255, these look like 0..1")
    return block.astype(np.float32)


@contextmanager
def _open(path: str | Path, any_type: bool) -> Iterator[tuple[IO[bytes], Header, np.dtype, bool]]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; expected an .npz with 'arr_0' (N,H,W,3) uint8")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            shape, fortran, dtype = _header(member)
            usual = dtype == np.uint8 and not fortran
            allowed = usual or (any_type and dtype.kind in "uif")
            if not allowed or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
                raise UserError(f"{str(path)!r} holds {dtype} {shape}; expected uint8 (N,H,W,3) in C order, N > 0")
            yield member, Header(shape[0], shape[1:3]), dtype, fortran
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} cannot be read as .npz with 'arr_0' ({error})") from error


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type. Raises: ValueError for anything that is no header."""
    try:
        version = np.lib.format.read_magic(member)
        # Versions 2 and 3 differ only in the encoding of field names, which these arrays do not have.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)
    except Exception as error:  # numpy parses the text as Python and passes on what the parser raises
        raise ValueError(f"damaged header: {error}") from error


CHUNK = 256


class PartWriter:
    """This process's share of `<path>`, as raw bytes in `<path>.part-<rank>`."""

    def __init__(self, path: str | Path, rank: int) -> None:
        self.path = _part(path, rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")

    def write(self, pixels: np.ndarray) -> None:
        """Append uint8 (n,H,W,3)."""
        self._file.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())

    def close(self) -> None:
        self._file.close()


def join(path: str | Path, count: int, size: tuple[int, int], ranks: int, about: Mapping[str, Any]) -> None:
    """Join the parts of all ranks into `<path>` (`arr_0` uint8 (count,H,W,3), and `about`) and delete them."""
    writer = NpzWriter(path, count, size, about)
    step = size[0] * size[1] * 3
    for rank in range(ranks):
        with _part(path, rank).open("rb") as file:
            while block := file.read(CHUNK * step):
                writer.write(np.frombuffer(block, np.uint8).reshape(-1, *size, 3))
    writer.close()
    for rank in range(ranks):
        _part(path, rank).unlink()


def _part(path: str | Path, rank: int) -> Path:
    return Path(f"{path}.part-{rank:05d}")


class NpzWriter:
    """Streams uint8 pixels (count,H,W,3) into `arr_0` of an uncompressed `.npz` with bounded memory.

    The file appears under its name only when `close` has seen exactly `count` images.

    Args:
        about: what the images are (`kind`: reference, reconstruction or generation) and how they were made, kept
            beside them as JSON, so that evaluators can refuse a set that does not belong to their reference.
    """

    def __init__(self, path: str | Path, count: int, size: tuple[int, int], about: Mapping[str, Any] | None = None):
        self.path, self.count, self.shape, self.about = Path(path), count, (*size, 3), dict(about or {})
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self.partial, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._member = self._zip.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._member, header)
        self.written = 0

    def write(self, pixels: np.ndarray) -> None:
        """Append uint8 (n,H,W,3)."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.shape:
            raise ValueError(f"got {pixels.dtype} {pixels.shape}; expected uint8 (n, {self.shape})")
        self._member.write(np.ascontiguousarray(pixels).tobytes())
        self.written += len(pixels)

    def close(self) -> None:
        self._member.close()
        with self._zip.open("about.npy", "w") as member:
            np.lib.format.write_array(member, np.array(json.dumps(self.about, sort_keys=True)), allow_pickle=False)
        self._zip.close()
        if self.written != self.count:
            self.partial.unlink()
            raise ValueError(f"{self.path}: {self.written} images written, {self.count} announced")
        os.replace(self.partial, self.path)
