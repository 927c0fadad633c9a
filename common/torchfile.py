"""`.pt` files read as data: tensors mapped from the disk, everything else inert, nothing of the file ever run.

A `.pt` file is a zip archive with a pickle and a record per tensor storage. This reader interprets the pickle's
instructions itself. It looks no name up and calls nothing a file names: the few names of torch that build tensors have
their own meaning below, classes that are known to hold plain settings become dicts, lists and numbers, and any other
name is refused. A tensor is a view of the mapped file, so reading costs no memory until its numbers are used.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from common.errors import UserError

__all__ = ["read"]

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
DTYPES = {str(dtype): dtype for dtype in (*STORAGES.values(), torch.complex64, torch.complex128)}


class Refused(Exception):  # noqa: N818
    """Something in the pickle is not plain data."""


def read(path: str | Path) -> Any:
    """What a `.pt`, `.pth` or `.bin` file holds: dicts, lists, tuples, numbers, strings and tensors (float or integer).

    `argparse.Namespace` comes as a dict; ruamel.yaml's mappings, sequences and numbers as dicts, lists and numbers.
    Tensors share the file's mapping: writing into them changes this process's copy only.

    Raises: UserError for a missing, truncated or foreign file, or one that names any other class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; expected a checkpoint file (scripts/download_checkpoints.sh)")
    try:
        if not zipfile.is_zipfile(path):
            return _read_old(path)
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).load()
    except Refused as problem:
        raise UserError(f"{str(path)!r} is refused: {problem}; only tensors and plain settings are read") from None
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, IndexError, TypeError, RuntimeError, OSError) as error:
        raise UserError(
            f"{str(path)!r} cannot be read as a torch checkpoint ({type(error).__name__}: {error}); "
            "it is damaged or cut short: download it again"
        ) from error


def _read_old(path: Path) -> Any:
    """Files older than the zip format, through torch's own restricted reader.

    Raises: Refused for a class that reader does not know.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError for both damage and foreign classes
        text = str(error)
        if "GLOBAL" in text:
            raise Refused(f"it names {text.partition('GLOBAL ')[2].split(' ')[0]}") from error
        raise ValueError("neither a zip archive nor an older torch file") from error


# ---------------------------------------------------------------------------------------------- storages


CHUNK = 1 << 22


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl inside")
        self.folder = pickles[0].removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        self.size = path.stat().st_size
        self.mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=self.size)

    def load(self) -> Any:
        with self.archive.open(f"{self.folder}data.pkl") as file:
            return _Interpreter(self.storage).run(file)

    def storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """A record as a flat tensor over the mapping."""
        info = self.archive.getinfo(f"{self.folder}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {key} is compressed")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + name_length + extra_length
        if start + info.file_size > self.size:
            raise ValueError(f"record {key} reaches beyond the end of the file")
        if info.file_size == 0:
            return torch.empty(0, dtype=dtype)
        with self.archive.open(info) as record:  # the mapping is not checked, so the archive's checksum is, once
            while record.read(CHUNK):
                pass
        raw = torch.empty(0, dtype=torch.uint8).set_(self.mapped[start : start + info.file_size])
        if start % dtype.itemsize:
            raw = raw.clone()  # a view must begin at a multiple of its item size
        return raw.view(dtype)


# ---------------------------------------------------------------------------------------------- the pickle


@dataclass(frozen=True)
class _Name:
    """A name the pickle mentions. It is never looked up."""

    full: str


@dataclass
class _Inert:
    """An object of a class that only holds settings: what it was made from, and what was put into it."""

    name: str
    arguments: tuple[Any, ...]
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


def _known_settings(name: str) -> bool:
    return name == "argparse.Namespace" or name.startswith("ruamel.yaml.")


class _Interpreter:
    """Runs the instructions of one pickle over plain values."""

    def __init__(self, storage: Callable[[str, torch.dtype], Tensor]) -> None:
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return _plain(self.stack.pop())
            self.step(opcode.name, argument)
        raise EOFError("the pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in WITH_VALUE:
            self.stack.append(argument)
        elif name in IGNORED:
            pass
        elif handler := getattr(self, f"on_{name.lower()}", None):
            handler(argument)
        else:
            raise Refused(f"its pickle uses the instruction {name}")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    # Stack and memory.

    def on_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def on_pop(self, _: Any) -> None:
        self.stack.pop()

    def on_binput(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    on_long_binput = on_put = on_binput

    def on_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def on_binget(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    on_long_binget = on_get = on_binget

    # Containers.

    def on_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def on_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def on_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def on_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def on_list(self, _: Any) -> None:
        self.stack.append(self.since_mark())

    def on_dict(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def on_append(self, _: Any) -> None:
        self.extend([self.stack.pop()])

    def on_appends(self, _: Any) -> None:
        self.extend(self.since_mark())

    on_additems = on_appends

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(items)
        else:
            (target.items if isinstance(target, _Inert) else _expect(target, list)).extend(items)

    def on_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.pair({key: value})

    def on_setitems(self, _: Any) -> None:
        items = self.since_mark()
        self.pair(dict(zip(items[::2], items[1::2], strict=True)))

    def pair(self, pairs: dict[Any, Any]) -> None:
        target = self.stack[-1]
        (target.pairs if isinstance(target, _Inert) else _expect(target, dict)).update(pairs)

    # Names and what they would build.

    def on_global(self, argument: str) -> None:
        self.name(argument.replace(" ", "."))

    def on_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module}.{name}")

    def name(self, full: str) -> None:
        full = full.replace("__builtin__.", "builtins.")
        if full in DTYPES:
            self.stack.append(DTYPES[full])
        elif full in BUILDERS or _known_settings(full) or _storage_type(full):
            self.stack.append(_Name(full))
        else:
            raise Refused(f"it names {full}")

    def on_newobj(self, _: Any) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        self.stack.append(self.build(_expect(named, _Name).full, _expect(arguments, tuple)))

    on_reduce = on_newobj

    def on_newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # keyword arguments of a settings class
        self.on_newobj(_)

    def build(self, name: str, arguments: tuple[Any, ...]) -> Any:
        return BUILDERS[name](*arguments) if name in BUILDERS else _Inert(name, arguments)

    def on_build(self, _: Any) -> None:
        """State for the object on top. Only settings keep any; what torch hangs on tensors and dicts is dropped."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Inert):
            self.stack[-1].state = state

    def on_binpersid(self, _: Any) -> None:
        kind, storage_type, key, _device, _count = _expect(self.stack.pop(), tuple)
        dtype = STORAGES.get(_expect(storage_type, _Name).full.removeprefix("torch."))
        if kind != "storage" or dtype is None:
            raise Refused(f"it stores a {kind} of {storage_type}")
        self.stack.append(self.storage(key, dtype))


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
WITH_VALUE = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
IGNORED = {"PROTO", "FRAME"}


def _storage_type(name: str) -> bool:
    return name.startswith("torch.") and name.removeprefix("torch.") in STORAGES


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"its pickle treats a {type(value).__name__} as a {kind.__name__}")
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> Tensor:
    """A tensor over a storage; torch checks that it stays inside."""
    storage = _expect(storage, Tensor)
    if any(value < 0 for value in (offset, *size, *stride)):
        raise ValueError("a tensor has negative sizes")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if math.prod(size) and last > storage.numel():
        raise ValueError("a tensor reaches beyond its storage")
    return storage.as_strided(size, stride, offset)


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_rest: _expect(tensor, Tensor),
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *words: ":".join(map(str, words)),
    "collections.OrderedDict": lambda pairs=(): dict(pairs),
    "builtins.set": lambda items=(): set(items),
    "_codecs.encode": lambda text, _encoding: _expect(text, str).encode("latin1"),
}


def _plain(value: Any) -> Any:
    """Settings objects, at any depth, as dicts, lists and numbers."""
    if isinstance(value, _Inert):
        if value.items or value.name.endswith("Seq"):
            return [_plain(item) for item in value.items]
        if value.arguments and isinstance(value.arguments[0], int | float | str):
            return value.arguments[0]  # a number or text that remembers how it was written
        state = value.state[1] if isinstance(value.state, tuple) else value.state
        if value.pairs or value.name != "argparse.Namespace":
            return {key: _plain(item) for key, item in value.pairs.items()}
        return {key: _plain(item) for key, item in (state or {}).items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, _Name):
        raise Refused(f"it holds the name {value.full} itself")
    return value
