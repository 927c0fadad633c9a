"""Images in `.npz` files, read and written in blocks, so that memory does not grow with their number."""

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

__all__ = ["Header", "NpzWriter", "PartWriter", "header", "join", "read_about", "read_parts", "remove_parts", "stream"]

BLOCK = 256
"""Images read from a part at a time."""


@dataclass(frozen=True)
class Header:
    """Shape of `arr_0`: `count` images of `size` (H,W)."""

    count: int
    size: tuple[int, int]


def header(path: str | Path, any_type: bool = False) -> Header:
    """Number and size of the images in `arr_0`, without reading them.

    Args:
        any_type: also accept other numeric types than uint8, and Fortran order.

    Raises: UserError when the file is missing or damaged or does not contain images (N,H,W,3).
    """
    with _open(path, any_type) as (_, found, _, _):
        return found


def stream(path: str | Path, batch_size: int, any_type: bool = False) -> Iterator[np.ndarray]:
    """The images of `arr_0` in order, (n,H,W,3) with n <= batch_size; uint8, or float32 where `any_type` converts.

    Raises: UserError as `header`; also for a truncated file, and for values outside 0..255 or only in 0..1.
    """
    with _open(path, any_type) as (member, found, dtype, fortran):
        if fortran:  # the images are not contiguous, so the array is read whole
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


def read_about(path: str | Path) -> dict[str, Any] | None:
    """The description that `NpzWriter` stored beside the images; None without one, or without a readable file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(archive["about"].item())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _checked(block: np.ndarray, path: str | Path) -> np.ndarray:
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all() or block.min() < 0 or block.max() > 255:
        raise UserError(f"{str(path)!r} contains values outside 0..255; expected pixels")
    if block.dtype.kind == "f" and 0 < block.max() <= 1:
        raise UserError(f"{str(path)!r} contains values up to {block.max():g}; expected 0..255, these look like 0..1")
    return block.astype(np.float32)


@contextmanager
def _open(path: str | Path, any_type: bool) -> Iterator[tuple[IO[bytes], Header, np.dtype, bool]]:
    """The open member `arr_0`, its header, its type, and whether it is in Fortran order."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; expected an .npz with 'arr_0' (N,H,W,3) uint8")
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
            shape, fortran, dtype = _header(member)
            usual = dtype == np.uint8 and not fortran
            allowed = usual or (any_type and dtype.kind in "uif")
            if not allowed or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
                raise UserError(f"{str(path)!r} contains {dtype} {shape}; expected uint8 (N,H,W,3) in C order, N > 0")
            yield member, Header(shape[0], shape[1:3]), dtype, fortran
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} cannot be read as .npz with 'arr_0' ({error})") from error


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type. Raises: ValueError for anything that is not a header."""
    try:
        version = np.lib.format.read_magic(member)
        # Versions 2 and 3 differ only in the encoding of field names, which these arrays do not have.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(member)
    except Exception as error:  # numpy parses the text as Python and passes on what the parser raises
        raise ValueError(f"damaged header: {error}") from error


class PartWriter:
    """One rank's images of `<path>`, as raw bytes in `<path>.part-<rank>`."""

    def __init__(self, path: str | Path, rank: int) -> None:
        self.path = _part(path, rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")

    def write(self, pixels: np.ndarray) -> None:
        """Append uint8 (n,H,W,3)."""
        self._file.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())

    def close(self) -> None:
        self._file.close()


def read_parts(path: str | Path, size: tuple[int, int], ranks: int) -> Iterator[np.ndarray]:
    """The images of all parts of `<path>`, uint8 (n,H,W,3) with n <= BLOCK, in rank order."""
    for rank in range(ranks):
        with _part(path, rank).open("rb") as file:
            while block := file.read(BLOCK * size[0] * size[1] * 3):
                yield np.frombuffer(block, np.uint8).reshape(-1, *size, 3)


def remove_parts(path: str | Path, ranks: int) -> None:
    for rank in range(ranks):
        _part(path, rank).unlink()


def join(path: str | Path, count: int, size: tuple[int, int], ranks: int, about: Mapping[str, Any]) -> None:
    """Join the parts of all ranks into `<path>` (`arr_0` uint8 (count,H,W,3), and `about`) and delete them."""
    writer = NpzWriter(path, count, size, about)
    for block in read_parts(path, size, ranks):
        writer.write(block)
    writer.close()
    remove_parts(path, ranks)


def _part(path: str | Path, rank: int) -> Path:
    return Path(f"{path}.part-{rank:05d}")


class NpzWriter:
    """Streams uint8 images (count,H,W,3) into `arr_0` of an uncompressed `.npz`.

    The file appears under its name when `close` has counted exactly `count` images.

    Args:
        about: kind of the images (`kind`: reference, reconstruction or generation) and how they were made. It is
            stored with them as JSON, so that evaluators can refuse a set that does not fit their reference.
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
