"""A reader for TensorFlow's frozen GraphDef files that needs neither TensorFlow nor protobuf.

Only what frozen image networks hold is understood: nodes, their inputs, and attributes that are numbers, bytes, lists
of integers, or constant tensors of float32 and int32.
Source: protobuf wire format; graph.proto, node_def.proto, attr_value.proto and tensor.proto of TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError

__all__ = ["Node", "read_graph"]

DTYPES = {1: np.dtype("<f4"), 3: np.dtype("<i4")}
"""TensorFlow's numbers of float32 and int32."""


@dataclass
class Node:
    """One operation. Inputs are node names; control inputs begin with '^'."""

    name: str = ""
    op: str = ""
    inputs: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


def read_graph(path: str | Path) -> dict[str, Node]:
    """All nodes of a GraphDef file by name.

    Raises: UserError when the file is no GraphDef.
    """
    data = memoryview(Path(path).read_bytes())
    try:
        nodes = [_node(value) for number, value in _fields(data) if number == 1]
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is no frozen TensorFlow graph ({error}); get the file again") from error
    if not nodes:
        raise UserError(f"{str(path)!r} holds no graph nodes; get the file again")
    return {node.name: node for node in nodes}


def _node(data: memoryview) -> Node:
    node = Node()
    for number, value in _fields(data):
        if number == 1:
            node.name = bytes(value).decode()
        elif number == 2:
            node.op = bytes(value).decode()
        elif number == 3:
            node.inputs.append(bytes(value).decode())
        elif number == 5:
            entry = dict(_fields(value))
            node.attributes[bytes(entry[1]).decode()] = _attribute(entry[2])
    return node


def _attribute(data: memoryview) -> Any:
    for number, value in _fields(data):
        if number == 1:  # a list; only integers are of interest
            return [x for n, v in _fields(value) if n == 3 for x in ([v] if isinstance(v, int) else _varints(v))]
        if number == 2:
            return bytes(value)
        if number == 4:
            return struct.unpack("<f", value)[0]
        if number == 5:
            return bool(value)
        if number == 8:
            return _tensor(value)
        return value  # 3: integer, 6: type
    return None


def _tensor(data: memoryview) -> np.ndarray | None:
    dtype, shape, content, values = 0, [], None, []
    for number, value in _fields(data):
        if number == 1:
            dtype = value
        elif number == 2:
            shape = [dict(_fields(dim)).get(1, 0) for n, dim in _fields(value) if n == 2]
        elif number == 4:
            content = value
        elif number == 5:
            values += np.frombuffer(value, "<f4").tolist()
        elif number == 7:
            values += [value] if isinstance(value, int) else _varints(value)
    if dtype not in DTYPES:
        return None  # an empty string constant in front of the JPEG decoder
    if content is not None:
        return np.frombuffer(content, DTYPES[dtype]).reshape(shape)
    count = int(np.prod(shape))
    # A constant that repeats one value is stored as that one value.
    filled = values + values[-1:] * (count - len(values)) if values else [0] * count
    return np.array(filled, DTYPES[dtype]).reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) pairs of one message: integers for varints, views for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + length > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield number, data[at : at + length]
        at += length


def _varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
