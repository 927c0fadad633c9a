"""Parquet files of the Hugging Face hub: columns `image` ({bytes, path} or bytes) and `label`.

Where the column is not compressed, an image is read alone. Otherwise its place is its page, which is compressed by
itself, and its position there. Where pages are of a kind that is not read here, it costs its whole row group.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.containers.index import Member, read_at
from common.containers.parquet_pages import CODECS, places
from common.errors import UserError

__all__ = ["read", "scan"]

BY_GROUP = -1
SUFFIXES = {b"\x89PNG": ".png", b"RIFF": ".webp"}


def scan(path: Path, bar: tqdm) -> tuple[list[Member], list[str] | None]:
    """The images of a parquet file; class names are those of the file's metadata.

    A name is the class and the `path` of the image, or the number of the row where a path is missing or repeated.

    Raises: UserError when the file is damaged or has other columns.
    """
    try:
        file = _open(str(path))
        columns = file.schema_arrow.names
        column = next((name for name in ("label", "labels") if name in columns), None)
        if "image" not in columns or column is None:
            raise ValueError(f"its columns are {', '.join(columns)}")
        members, stated = _rows(path, file, column, bar), _class_names(file, column)
    except Exception as error:  # pyarrow raises its own kinds of exceptions
        reason = " ".join(str(error).split())
        raise UserError(
            f"parquet file {str(path)!r} cannot be read ({reason}); expected the columns image and label, download or "
            "copy it again"
        ) from error
    return members, stated


def _rows(path: Path, file: Any, column: str, bar: tqdm) -> list[Member]:
    stated, by_page = _class_names(file, column), True
    asked = [column]
    if any(file.metadata.schema.column(at).path == "image.path" for at in range(file.metadata.num_columns)):
        asked.append("image.path")
    labels: list[int] = []
    where: list[tuple[int, int, int, int, int]] = []
    names: list[str | None] = []
    with path.open("rb") as opened:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, asked)
            count = len(table)
            found = places(opened.fileno(), file.metadata, group) if by_page else None
            if found and not where:
                by_page = _agree(opened.fileno(), path, group, found)
            where += found if found and by_page else [(0, 0, 0, row, BY_GROUP - group) for row in range(count)]
            labels += table[column].to_pylist()
            paths = [row["path"] for row in table["image"].to_pylist()] if len(asked) > 1 else [None] * count
            # Where the bytes are here, it does not matter where a path leads.
            names += [name and name.rpartition("/")[2] for name in paths] if found else paths
            bar.update(count)
        first = b""
        with suppress(Exception):  # reported when the image is read
            first = read(opened.fileno(), path, *where[0])[:4]
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        if name and "/" not in name:
            folder = stated[label] if stated and label >= 0 else str(label)
            names[row] = f"{folder.replace('/', '_')}/{name}"
    if None in names or len(set(names)) < len(names):
        names = [f"{row:07d}{SUFFIXES.get(first, '.jpg')}" for row in range(len(names))]
    return [Member(*of_row) for of_row in zip(names, where, labels, strict=True)]


def _agree(handle: int, path: Path, group: int, found: list[tuple[int, int, int, int, int]]) -> bool:
    """Whether pyarrow reads the same first and last image of a row group as `places` found."""
    with suppress(Exception):  # a damaged page is reported when the image is read
        return all(read(handle, path, *found[at]) == _by_group(path, group, at) for at in (0, -1))
    return True


def read(handle: int, path: Path, offset: int, stored: int, size: int, position: int, kind: int) -> bytes:
    """An image's bytes. Raises: ValueError, struct.error or one of pyarrow's kinds when they are damaged."""
    if kind <= BY_GROUP:
        return _by_group(path, BY_GROUP - kind, position)
    from pyarrow import Codec

    page = read_at(handle, offset, stored)
    codec, levels = CODECS[kind >> 1], kind & 1
    if codec != "UNCOMPRESSED":
        page = memoryview(Codec(codec.lower()).decompress(page, size))
    at = 4 + struct.unpack_from("<I", page)[0] if levels else 0  # which values are null: none
    for _ in range(position):
        at += 4 + struct.unpack_from("<I", page, at)[0]
    end = at + 4 + struct.unpack_from("<I", page, at)[0]
    if end > len(page):
        raise ValueError("the page ends before the image does")
    return bytes(page[at + 4 : end])


def _by_group(path: Path, group: int, row: int) -> bytes:
    """An image's bytes; those of a `path` without bytes lie in the file of that name, in the parquet file's folder."""
    image = _images(str(path), group)[row].as_py()
    content = image["bytes"] if isinstance(image, dict) else image
    if content is not None:
        return content
    file = path.parent / image["path"]
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise ValueError(f"its path {image['path']!r} leads out of the folder")
    return file.read_bytes()


def _open(path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("parquet files need pyarrow; run: pip install pyarrow") from error
    return ParquetFile(path)


@lru_cache(maxsize=1)
def _images(path: str, group: int) -> Any:
    return _open(path).read_row_group(group, ["image"])["image"]


def _class_names(file: Any, column: str) -> list[str] | None:
    """`ClassLabel` names, which `datasets` keeps in the schema's metadata."""
    about = (file.schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(about)["info"]["features"] if about else {}
    return features.get(column, {}).get("names")
