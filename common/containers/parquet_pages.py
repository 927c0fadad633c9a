"""Where the images of a parquet file lie: the pages of the column of bytes, without reading their content.

A page has a header in Thrift's compact protocol, then its values. The first values of a row group may lie in a
dictionary page, in the order in which they occurred. Source: the Apache Parquet format, parquet.thrift.
"""

from __future__ import annotations

import os
import struct
from typing import Any

__all__ = ["CODECS", "places"]

CODECS = ("UNCOMPRESSED", "SNAPPY", "ZSTD", "GZIP", "BROTLI")
COLUMN = ("image.bytes", "image")
LONGEST_HEADER = 1 << 16  # bytes
DATA_PAGE, DICTIONARY_PAGE = 0, 2
PLAIN, DICTIONARY = 0, (2, 8)  # encodings
Place = tuple[int, int, int, int, int]


def places(handle: int, metadata: Any, group: int) -> list[Place] | None:
    """For each row: offset, size and decompressed size of its page, its position there, and codec * 2 + levels.

    `levels` is 1 where the page's values follow their definition levels. None for pages of other kinds, for a column
    with nulls, and where equal images share an entry of the dictionary.
    """
    rows = metadata.row_group(group)
    at = next((at for at in range(rows.num_columns) if rows.column(at).path_in_schema in COLUMN), None)
    chunk = rows.column(at) if at is not None else None
    if chunk is None or chunk.compression not in CODECS or not chunk.statistics or chunk.statistics.null_count != 0:
        return None
    codec, levels = 2 * CODECS.index(chunk.compression), metadata.schema.column(at).max_definition_level > 0
    start = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
    found: list[Place] = []
    entries: list[Place] = []
    coded = 0
    offset = start
    while offset < start + chunk.total_compressed_size:
        header, length = _struct(os.pread(handle, LONGEST_HEADER, offset), 0)
        page = (offset + length, header[3], header[2])
        about = header.get(5) or header.get(7) or {}
        if header[1] == DICTIONARY_PAGE:
            entries = [(*page, number, codec) for number in range(about[1])]
        elif header[1] == DATA_PAGE and about[2] == PLAIN:
            found += [(*page, number, codec + levels) for number in range(about[1])]
        elif header[1] == DATA_PAGE and about[2] in DICTIONARY:
            found += entries[coded : coded + about[1]]
            coded += about[1]
        else:
            return None
        offset += length + header[3]
    if coded != len(entries) or len(found) != rows.num_rows:
        return None
    return found if codec else _singly(handle, found)


def _singly(handle: int, pages: list[Place]) -> list[Place]:
    """Places within pages that are not compressed -> the places of the values alone."""
    found: list[Place] = []
    at = 0
    for offset, _, _, position, levels in pages:
        if position == 0:
            at = offset + (4 + _length(handle, offset) if levels else 0)
        size = 4 + _length(handle, at)
        found.append((at, size, size, 0, 0))
        at += size
    return found


def _length(handle: int, offset: int) -> int:
    return struct.unpack("<I", os.pread(handle, 4, offset))[0]


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, its fields by number, and its end. Raises: IndexError, ValueError."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        step, kind = head >> 4, head & 15
        number, at = (number + step, at + 1) if step else _integer(data, at + 1)
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # 16, 32 and 64 bits
            fields[number], at = _integer(data, at)
        elif kind == 8:  # bytes
            size, at = _unsigned(data, at)
            at += size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"a page header has a field of type {kind}")
    return fields, at + 1


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return value >> 1 ^ -(value & 1), at
