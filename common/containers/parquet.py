"""Parquet files of the Hugging Face hub: columns `image` ({bytes, path} or bytes) and `label`.

An image's place is its page and its position there (Apache Parquet format: a page is compressed by itself), so one
image costs reading about a megabyte. Where pages are of a kind that is not read here, it costs its whole row group.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
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
    found: list[tuple[str | None, tuple[int, ...], int]] = []
    stated = _class_names(file, column)
    leaves = [file.metadata.schema.column(at).path for at in range(file.metadata.num_columns)]
    with path.open("rb") as opened:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            asked = [column, "image.path"] if "image.path" in leaves else [column]
            table = file.read_row_group(group, asked)
            labels = table[column].to_pylist()
            paths = [row["path"] for row in table["image"].to_pylist()] if len(asked) > 1 else [None] * count
            where = places(opened.fileno(), file.metadata, group)
            if group == 0 and where and not _agree(opened.fileno(), path, where):
                where = None
            if where:  # the bytes are here: where a path leads does not matter
                paths = [name and name.rpartition("/")[2] for name in paths]
            where = where or [(0, 0, 0, row, BY_GROUP - group) for row in range(count)]
            found += zip(paths, where, labels, strict=True)
            bar.update(count)
        if not found:
            return []
        first = read(opened.fileno(), path, *found[0][1])
    folders = [(stated[label] if stated and label >= 0 else str(label)).replace("/", "_") for _, _, label in found]
    paths = [path for path, _, _ in found]
    names = [path and (path if "/" in path else f"{at}/{path}") for at, path in zip(folders, paths, strict=True)]
    if None in names or max(Counter(names).values()) > 1:
        names = [f"{row:07d}{SUFFIXES.get(first[:4], '.jpg')}" for row in range(len(found))]
    return [Member(name, where, label) for name, (_, where, label) in zip(names, found, strict=True)]


def _agree(handle: int, path: Path, where: list[tuple[int, ...]]) -> bool:
    """Whether pyarrow reads the same first and last image of the first row group as `places` finds."""
    return all(read(handle, path, *where[at]) == _by_group(path, 0, at) for at in {0, len(where) - 1})


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
