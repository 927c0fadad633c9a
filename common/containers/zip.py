"""Zip files of an image folder, such as Kaggle's ImageNet (ILSVRC/Data/CLS-LOC/train/<class>/*.JPEG)."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from common.containers.index import Member
from common.errors import UserError
from common.images import IMAGE_SUFFIXES

__all__ = ["decode", "scan"]

HEADER = 30  # bytes of a local file header before the name


def scan(path: Path) -> tuple[list[Member], None]:
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
                    raise ValueError(f"{entry.filename} is encrypted or not compressed by deflate")
                file.seek(entry.header_offset)
                lengths = struct.unpack_from("<HH", file.read(HEADER), 26)  # of the name and the extra field
                where = (entry.header_offset + HEADER + sum(lengths), entry.compress_size, entry.compress_type)
                members.append(Member(entry.filename, where))
    except (zipfile.BadZipFile, ValueError, OSError, struct.error) as error:
        raise UserError(f"zip file {str(path)!r} cannot be read ({error}); download it again") from error
    return members, None


def decode(content: bytes, method: int) -> bytes:
    """An image's bytes from those in the file; `method` 0 = stored."""
    return content if method == zipfile.ZIP_STORED else zlib.decompress(content, -zlib.MAX_WBITS)
