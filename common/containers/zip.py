"""Zip files of an image folder, such as Kaggle's ImageNet (ILSVRC/Data/CLS-LOC/train/<class>/*.JPEG)."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from common.containers.index import Member, read_at
from common.errors import UserError
from common.images import IMAGE_SUFFIXES

__all__ = ["read", "scan"]

HEADER = 30  # bytes of a local file header before the name


def scan(path: Path, bar: tqdm) -> tuple[list[Member], None]:
    """The images of a zip file; classes are folders.

    Raises: UserError when the file is damaged or encrypted, or compressed otherwise than by deflate.
    """
    members = []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for entry in archive.infolist():
                if entry.is_dir() or not entry.filename.lower().endswith(IMAGE_SUFFIXES):
                    continue
                if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{entry.filename!r} is encrypted or not compressed by deflate")
                lengths = struct.unpack("<HH", read_at(file.fileno(), entry.header_offset + 26, 4))  # name, extra field
                at = entry.header_offset + HEADER + sum(lengths)
                sizes = (entry.compress_size, entry.file_size)
                members.append(Member(entry.filename, (at, *sizes, entry.CRC, entry.compress_type)))
                bar.update()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error) as error:
        raise UserError(f"zip file {str(path)!r} cannot be read ({error}); download or copy it again") from error
    return members, None


def read(handle: int, _path: Path, offset: int, stored: int, size: int, crc: int, method: int) -> bytes:
    """An image's bytes; never more than `size`. Raises: ValueError or zlib.error when they are damaged."""
    content = read_at(handle, offset, stored)
    if method != zipfile.ZIP_STORED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    if len(content) != size or zlib.crc32(content) != crc:
        raise ValueError("its checksum differs: the zip file is damaged")
    return content
