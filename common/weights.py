"""Weights from checkpoint files of any project, read as data: nothing that a file names is imported or called.

The content decides how a file is read, not its suffix: safetensors, the zip format of `torch.save`, or its format
before torch 1.6. Tensors are mapped from the disk: names and shapes cost no memory and little time. Only files of that
last format are read whole.
"""

from __future__ import annotations

import io
import json
import math
import pickle  # only the base of the unpickler below, which imports nothing
import pickletools
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import UserError

__all__ = ["Weights", "open_weights", "read"]

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Names that DDP, torch.compile and FSDP insert into keys, in any order and at any depth."""
TRAINING = ("loss.", "losses.", "discriminator.", "optimizer.", "perceptual_loss.")
"""Prefixes of what a Lightning module's state dict holds besides its model."""
AVERAGE = "model_ema."
"""Prefix of the moving averages in such a state dict. Their names are the weights' names without dots."""
PARTS = ("model", "ema", "module", "state_dict")


@dataclass(frozen=True)
class Weights:
    """One state dict of a file. `mapped`: its tensors as stored; `part`: its key in the file ("" if the file holds
    nothing else); `args`: settings stored beside it; `averaged`: whether averages are among its tensors."""

    path: Path
    mapped: dict[str, Tensor]
    part: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    averaged: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, floats as float32; those stored as float32 stay mapped from the disk.

        Raises: UserError when a checksum of the file does not match.
        """
        with _explained(self.path):
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    if damaged := archive.testzip():
                        raise ValueError(f"the checksum of {damaged} does not match")
        return {key: value.float() if value.is_floating_point() else value for key, value in self.mapped.items()}


def open_weights(
    path: str | Path, order: Sequence[str], known: Callable[[Mapping[str, Tensor]], bool] = lambda _: True
) -> Weights:
    """One state dict of a checkpoint file: the first of `order` that `known` accepts, else the first there is, or the
    file itself if it is a state dict.

    Prefixes of wrapped models are removed, and so are the keys of losses and discriminators. Where `order` begins with
    "ema", averages stored inside the state dict replace its weights.

    Raises: UserError for a file that cannot be read or holds none of the parts.
    """
    path = Path(path)
    content = read(path)
    if not isinstance(content, dict) or not content:
        kind = type(content).__name__
        raise UserError(f"{str(path)!r} holds a {kind}; expected a dict of tensors, such as a model's state_dict()")
    average = order[0] == "ema"
    if _is_state_dict(content):
        return Weights(path, _cleaned(content, average, path), averaged=_averaged(content))
    found = {part: _cleaned(_at(content, part), average, path) for part in order if _is_state_dict(_at(content, part))}
    if not found:
        there = ", ".join(f"{key!r}" for key in list(content)[:8])
        raise UserError(
            f"{str(path)!r} holds {there}, none of which is a state dict called {' or '.join(order)}; "
            f"choose with weights=NAME ({' or '.join(key for key in PARTS if key in content) or 'none fits'})"
        )
    part = next((part for part, tensors in found.items() if known(tensors)), next(iter(found)))
    args = content.get("args")
    return Weights(path, found[part], part, args if isinstance(args, dict) else {}, _averaged(_at(content, part)))


def _at(content: Any, part: str) -> Any:
    """What a dotted path leads to, or None."""
    for name in part.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return content


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(x, Tensor) for x in content.values())


def _averaged(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(AVERAGE) for key in tensors)


def _cleaned(tensors: Mapping[str, Tensor], average: bool, path: Path) -> dict[str, Tensor]:
    named = [(".".join(word for word in key.split(".") if word not in WRAPPERS), tensors[key]) for key in tensors]
    averages = {key.removeprefix(AVERAGE): value for key, value in named if key.startswith(AVERAGE)}
    named = [(key, value) for key, value in named if not key.startswith((AVERAGE, *TRAINING))]
    if average:
        named = [(key, averages.get(key.replace(".", ""), value)) for key, value in named]
    if all(key.startswith("model.") for key, _ in named):
        named = [(key.removeprefix("model."), value) for key, value in named]
    cleaned = dict(named)
    if len(cleaned) < len(named):
        raise UserError(f"{str(path)!r} holds weights twice, with and without prefixes; save one state_dict()")
    return cleaned


# ---------------------------------------------------------------------------------------------- formats


class _Refused(Exception):  # noqa: N818
    """The pickle holds something other than tensors and settings."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns the errors of damaged and foreign files into one sentence."""
    try:
        yield
    except _Refused as problem:
        raise UserError(f"{str(path)!r} is refused: {problem}; only tensors and plain settings are read") from None
    except FileNotFoundError:
        raise UserError(
            f"{str(path)!r} does not exist; expected a checkpoint file (scripts/download_checkpoints.sh)"
        ) from None
    except (
        ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
        SafetensorError, TypeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{str(path)!r} cannot be read as a checkpoint ({type(error).__name__}: {reason}); "
            "it is damaged or cut short, or another kind of file: get it again"
        ) from error


def read(path: str | Path) -> Any:
    """What a checkpoint file holds: dicts, lists, tuples, numbers, text and tensors.

    `argparse.Namespace` becomes a dict; mappings, sequences and numbers of ruamel.yaml become plain ones. Objects of
    other classes become dicts of their state, or of nothing. Tensors share the file's mapping: writing into them
    changes this process's copy only.

    Raises: UserError for a missing, damaged or foreign file, and for one that names a function of Python's own library.
    """
    path = Path(path)
    with _explained(path):
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # after the length of a JSON header
            return _safetensors(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = _Archive(path, archive).load()
        elif start[:1] == b"\x80":
            if _is_tar(path):  # torch.load would unpack it to a folder
                raise _Refused("it is a tar archive")
            # torch's own weights_only refuses settings such as argparse.Namespace; OLD_FORMAT imports nothing.
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=OLD_FORMAT)
        elif start and start[:2] != b"PK":
            raise _Refused(f"it begins with {start!r}, so it is neither safetensors nor written by torch.save")
        else:
            raise ValueError("it ends early")
        if isinstance(content, _Inert):
            raise _Refused(f"it is an object of class {content.name}, whose state_dict() should be saved instead")
        return _plain(content, {})


def _is_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except tarfile.TarError:
        return False
    return True


def _safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. (`safe_open.get_tensor` asks the system to read the tensor ahead.)"""
    with safe_open(path, "pt"):
        pass  # SafetensorError unless the header fits the file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    mapped, found = _mapped(path), {}
    for key, about in header.items():
        flat = _flat(mapped, 8 + length + about["data_offsets"][0], math.prod(about["shape"]), SAFE[about["dtype"]])
        found[key] = flat.view(about["shape"])
    return found


def _mapped(path: Path) -> Tensor:
    """The bytes of a file, mapped from the disk."""
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _flat(mapped: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` numbers from byte `start` on."""
    raw = mapped[start : start + count * dtype.itemsize]
    raw = raw.clone() if start % dtype.itemsize else raw  # a view begins at a multiple of its item size
    return raw.view(dtype)


class _Archive:
    """The zip format: `NAME/data.pkl` and a record `NAME/data/KEY` for each storage, none of them compressed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("no data.pkl inside")
        self.archive, self.folder = archive, pickles[0].removesuffix("data.pkl")
        self.mapped = _mapped(path)

    def load(self) -> Any:
        if f"{self.folder}byteorder" in self.archive.namelist() and self.stored("byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        unpickler = _Unpickler(io.BytesIO(self.stored("data.pkl")))
        unpickler.persistent_load = self.storage
        return unpickler.load()

    def info(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(f"{self.folder}{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {name} is compressed")
        return info

    def stored(self, name: str) -> bytes:
        return self.archive.read(self.info(name))

    def storage(self, pid: tuple[Any, ...]) -> Tensor:
        """A record as a flat tensor over the mapping."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise _Refused(f"it stores a {kind}")
        info = self.info(f"data/{key}")
        header = bytes(self.mapped[info.header_offset : info.header_offset + 30].tolist())
        name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + name_length + extra_length
        if not 0 <= count * dtype.itemsize <= min(info.file_size, len(self.mapped) - start):
            raise ValueError(f"record {key} is too short: its tensors reach beyond its storage")
        return _flat(self.mapped, start, count, dtype)


# ---------------------------------------------------------------------------------------------- pickles

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
DTYPES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
DTYPES |= {str(dtype): dtype for dtype in (*STORAGES.values(), torch.complex64, torch.complex128)}
SAFE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAFE |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "C64": torch.complex64}
SAFE |= {f"{kind[0].upper()}{n}": getattr(torch, f"{kind}{n}") for kind in ("int", "uint") for n in (8, 16, 32, 64)}
"""Data types of safetensors by their name there."""
SETTINGS = ("argparse.", "collections.", "copyreg.", "datetime.", "decimal.", "fractions.", "pathlib.", "typing.")
"""Modules of Python's own library whose objects are settings; PLAIN: names in others. Every other name is refused."""
PLAIN = {f"builtins.{name}" for name in ("object", "list", "dict", "tuple", "frozenset", "complex", "range", "slice")}
PLAIN |= {"builtins.getattr", "functools.partial", "types.SimpleNamespace", "uuid.UUID"}


class _Inert:
    """Stands for a class or function that is not imported: keeps what the pickle gives it, and does nothing."""

    name = ""

    def __new__(cls, *arguments: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.arguments, made.items, made.pairs, made.state = arguments, [], {}, {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """`__new__` has taken the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state[1] if isinstance(state, tuple) and len(state) == 2 else state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[key] = value

    def append(self, item: Any) -> None:
        self.items.append(item)

    add = append


class _Dict(dict):
    """An OrderedDict without the attributes that torch sets on state dicts."""

    def __setstate__(self, state: Any) -> None:
        """Drops them."""


class _Builder:
    """One of our functions; a pickle can call it but not change it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("it changes a function")


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, with a `find_class` that imports nothing."""

    def __init__(self, file: BinaryIO, **_: Any) -> None:
        start = file.tell()
        for opcode, argument, position in pickletools.genops(file):
            if "PUT" in opcode.name and int(argument) > position:  # Python would allocate that many entries
                raise ValueError("a memo index out of range")
        file.seek(start)
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full in DTYPES:
            return DTYPES[full]
        if full in BUILDERS:
            return BUILDERS[full]
        if module.split(".")[0] in sys.stdlib_module_names and not (full.startswith(SETTINGS) or full in PLAIN):
            raise _Refused(f"it names {full}")
        return type("Inert", (_Inert,), {"name": full})


OLD_FORMAT = SimpleNamespace(
    __name__="common.weights", Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load()
)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    """A view of a storage. Raises: ValueError when it does not lie inside."""
    if isinstance(storage, torch.storage.TypedStorage):  # of the older format
        storage = torch.empty(0, dtype=storage.dtype).set_(storage)
    if any(value < 0 for value in (offset, *size, *stride)):
        raise ValueError("a tensor has negative sizes")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if math.prod(size) and last > len(storage):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


BUILDERS = {
    "torch._utils._rebuild_tensor": _Builder(_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_tensor),
    "torch._utils._rebuild_parameter": _Builder(lambda tensor, *_: tensor),
    "torch.Size": _Builder(lambda sizes=(): tuple(sizes)),
    "torch.device": _Builder(lambda *words: ":".join(map(str, words))),
    "collections.OrderedDict": _Builder(lambda pairs=(): _Dict(pairs)),
    "builtins.set": _Builder(lambda items=(): set(items)),
    "_codecs.encode": _Builder(lambda text, _: str.encode(text, "latin1")),
}


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Inert objects at any depth as dicts, lists and numbers. `done`: results by id; None for what contains itself."""
    if not isinstance(value, dict | list | tuple | _Inert):
        return value.name if isinstance(value, type) and issubclass(value, _Inert) else value
    if id(value) in done:
        return done[id(value)]
    done[id(value)] = None
    if isinstance(value, dict):
        plain = {key: _plain(item, done) for key, item in value.items()}
    elif not isinstance(value, _Inert):
        plain = type(value)(_plain(item, done) for item in value)
    elif value.items or value.name.endswith("Seq"):
        plain = _plain(value.items, done)
    elif value.arguments and isinstance(value.arguments[0], int | float | str):
        plain = value.arguments[0]  # a number or text that remembers how it was written
    else:
        plain = _plain(value.pairs or (value.state if isinstance(value.state, dict) else {}), done)
    done[id(value)] = plain
    return plain
