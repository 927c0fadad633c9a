"""Parquet files of the Hugging Face hub: columns `image` ({bytes, path}) and `label`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.containers.index import Member
from common.errors import UserError

__all__ = ["read", "scan"]


def scan(path: Path) -> tuple[list[Member], list[str] | None]:
    """The images of a parquet file: row group and row of each; class names are those of the file's metadata.

    Raises: UserError when the file is damaged or has other columns.
    """
    try:
        file = _open(str(path))
        column = next((name for name in ("label", "labels") if name in file.schema_arrow.names), None)
        if "image" not in file.schema_arrow.names:
            raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
        members = []
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            labels = file.read_row_group(group, [column])[column].to_pylist() if column else [0] * count
            names = [f"{path.stem}/{group:05d}-{row:06d}" for row in range(count)]
            members += [Member(names[row], (group, row, 0), labels[row]) for row in range(count)]
        return members, _class_names(file, column)
    except Exception as error:  # pyarrow raises its own kinds of exceptions
        raise UserError(
            f"parquet file {str(path)!r} cannot be read ({error}); expected the columns image and label"
        ) from error


def read(path: Path, group: int, row: int) -> bytes:
    """An image's bytes. Reading one costs reading its row group; the last one is kept."""
    return _images(str(path), group)[row].as_py()["bytes"]


def _open(path: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("parquet files need pyarrow; run: pip install pyarrow") from error
    return ParquetFile(path)


@lru_cache(maxsize=1)
def _images(path: str, group: int) -> Any:
    return _open(path).read_row_group(group, ["image"])["image"]


def _class_names(file: Any, column: str | None) -> list[str] | None:
    """`ClassLabel` names, which `datasets` keeps in the schema's metadata."""
    about = (file.schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(about)["info"]["features"] if about and column else {}
    return features.get(column, {}).get("names") if features else None
