"""Schemas: dataclasses whose fields are documented and checked, swappable parts, and YAML files merged into them.

A job's options are a dataclass. A field that holds a swappable part (`part(...)`) or a map of optional parts
(`parts(...)`) names the table in which the part is looked up; the part's own keys are checked by the nested `Config` of
its class.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError, nearest

__all__ = [
    "MISSING",
    "bounds",
    "build",
    "dump",
    "load_yaml",
    "lookup",
    "merge",
    "nested_schema",
    "opt",
    "part",
    "parts",
    "plain",
    "read_entry",
    "read_yaml",
    "resolve",
    "table_names",
    "type_name",
]



# ---------------------------------------------------------------------------------------------- declaring


def opt(
    default: Any, help: str, choices: Sequence[str] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A documented field. Mutable defaults are copied for every instance.

    Args:
        choices: the only texts that are accepted. low, high: inclusive bounds of a number, or of each number of a list.
    """
    about = {"help": help, "choices": tuple(choices), "low": low, "high": high}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def part(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A mapping with a `name` from `table` ("package.module:TABLE"); its other keys belong to that class's Config."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "part": table})


def parts(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A map of optional parts: key -> mapping (or null = off). `name` defaults to the key."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "parts": table})


# ---------------------------------------------------------------------------------------------- looking up


def _import(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import {path!r} ({error}); expected 'module:Class' importable from here") from error


def lookup(table: str, name: str) -> type:
    """The class called `name` in `table`, or `module:Class` from outside the tree.

    Raises: UserError naming the nearest known name.
    """
    if ":" in name:
        return _import(name)
    known = _import(table)
    if name not in known:
        raise UserError(
            f"unknown {table.partition(':')[2].lower()} name {name!r}{nearest(name, known)}; "
            f"known: {', '.join(sorted(known))}, or 'module:Class' for your own"
        )
    return known[name]


def table_names(table: str) -> list[str]:
    """The names in a table, sorted."""
    return sorted(_import(table))


def build(table: str, mapping: Mapping[str, Any], **context: Any) -> Any:
    """Instantiate the part that `mapping` (with a `name`) describes: `cls(config, **context)`."""
    cls = lookup(table, mapping["name"])
    keys = {key: value for key, value in mapping.items() if key != "name"}
    return cls(resolve(cls.Config, keys, where=mapping["name"]), **context)


# ---------------------------------------------------------------------------------------------- merging


def merge(base: Any, override: Any) -> Any:
    """Deep merge of plain mappings; an override that changes `name` drops the old part's keys."""
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return override
    if "name" in override and "name" in base and override["name"] != base["name"]:
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a plain dict, its `base:` files (relative to it) merged underneath. `1e-4` is a float."""
    return plain(load_yaml(Path(path)))


def load_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """As `read_yaml`, with every number, boolean and null as a `Scalar`."""
    if not path.is_file():
        raise UserError(f"config file {str(path)!r} does not exist; expected a YAML file (--config FILE)")
    if path.resolve() in seen:
        raise UserError(f"config file {str(path)!r} is its own base; remove one 'base:' from the circle")
    try:
        raw = _read_text(path.read_text("utf-8-sig"))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"config file {str(path)!r} is not valid YAML: {first_line}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config file {str(path)!r} does not hold a mapping of keys to values")
    bases = plain(raw.pop("base", None)) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, load_yaml(path.parent / base, (*seen, path.resolve())))
    return merge(merged, raw)


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A YAML scalar that is not a string: its text, which an option that takes a string keeps, and its value."""

    text: str
    value: Any

    def __str__(self) -> str:
        return self.text


class _Loader(yaml.SafeLoader):
    """YAML with scalars that remember their text. `1e-4` is a float, which YAML 1.1 takes for a string."""


def _scalar(kind: str) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Scalar]:
    construct = getattr(yaml.SafeLoader, f"construct_yaml_{kind}")
    return lambda loader, node: Scalar(node.value, construct(loader, node))


for _kind in ("int", "float", "bool", "null", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _scalar(_kind))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_text(text: str) -> Any:
    loader = _Loader(text)
    try:
        raw = loader.get_single_data()
    finally:
        loader.dispose()
    if "${" not in text:
        return raw
    return OmegaConf.to_container(OmegaConf.create(plain(raw)), resolve=True)  # interpolations


def plain(value: Any) -> Any:
    """`value` with every `Scalar` replaced by its value."""
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------- checking


def resolve(schema: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Check `raw` against the dataclass `schema` and return an instance with every default filled in.

    Raises: UserError for an unknown key (with the nearest known one), a wrong type, or a missing value.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}
    leaves: dict[str, Any] = {}
    deep: dict[str, Any] = {}
    for key, value in raw.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in fields:
            raise UserError(f"unknown key {dotted!r}{nearest(str(key), fields)}; known here: {', '.join(fields)}")
        nested = nested_schema(schema, key)
        if nested:
            absent = plain(value) is None and type(None) in getattr(field_types(schema)[key], "__args__", ())
            deep[key] = None if absent else resolve(nested, _mapping(value, dotted), where=dotted)
        elif {"part", "parts"} & fields[key].metadata.keys():
            deep[key] = value
        else:
            leaves[key] = _typed(value, field_types(schema)[key])
    try:
        checked = OmegaConf.merge(OmegaConf.structured(_leaf_schema(schema)), leaves)
        values = OmegaConf.to_container(checked, throw_on_missing=False)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", "")
        dotted = ".".join(filter(None, (where, str(key))))
        raise UserError(f"key {dotted!r}: {str(error).splitlines()[0]}") from error
    for name, field in fields.items():
        dotted = f"{where}.{name}" if where else name
        if field.metadata.get("part"):
            default = field.default_factory()
            deep[name] = _complete(field.metadata["part"], merge(default, deep.get(name, {})), dotted)
        elif field.metadata.get("parts"):
            given = merge(field.default_factory(), deep.get(name) or {})
            table = field.metadata["parts"]
            deep[name] = {
                key: _complete(table, merge({"name": key}, {} if value is True else value), f"{dotted}.{key}")
                for key, value in _switched_on(given).items()
            }
        elif nested_schema(schema, name) and name not in deep:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            deep[name] = None if default is None else resolve(nested_schema(schema, name), {}, where=dotted)
    values.update({name: deep[name] for name in deep})
    for name in fields:
        if isinstance(values.get(name), str) and values[name] == MISSING:
            dotted = f"{where}.{name}" if where else name
            help = fields[name].metadata.get("help", "")
            raise UserError(
                f"{dotted!r} is not set ({help}); give it as {dotted}=VALUE or --{name.replace('_', '-')} VALUE"
            )
        _check_range(f"{where}.{name}" if where else name, values.get(name), fields[name].metadata)
    return schema(**values)


def _switched_on(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that are neither null nor false."""
    bare = {key: plain(value) if isinstance(value, Scalar) else value for key, value in given.items()}
    return {key: value for key, value in bare.items() if value is not None and value is not False}


def _typed(value: Any, hint: Any) -> Any:
    """A leaf's value as its type wants it: text stays as it was written, and a leading `~` is the home folder."""
    kinds = (hint, *getattr(hint, "__args__", ()))
    if isinstance(value, list):
        [inner] = [kind for kind in kinds if getattr(kind, "__origin__", None) is list] or [list[Any]]
        return [_typed(item, inner.__args__[0]) for item in value]
    if isinstance(value, Scalar) and str in kinds and not (value.value is None and type(None) in kinds):
        value = value.text
    value = plain(value)
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return os.path.expanduser(value)
    return value


def _check_range(dotted: str, value: Any, about: Mapping[str, Any]) -> None:
    """Raises: UserError for a value outside the choices or bounds of its field."""
    choices, low, high = about.get("choices"), about.get("low"), about.get("high")
    for each in value if isinstance(value, list) else [value]:
        if each is None or each == MISSING:
            continue
        if choices and each not in choices:
            raise UserError(f"{dotted} got {each!r}; expected {', '.join(choices[:-1])} or {choices[-1]}")
        if isinstance(each, int | float) and ((low is not None and each < low) or (high is not None and each > high)):
            raise UserError(f"{dotted} got {each}; expected {bounds(low, high)}")


def bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _mapping(value: Any, dotted: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"key {dotted!r} got {value!r}; expected a mapping of keys to values")
    return value


def _complete(table: str, mapping: Any, dotted: str) -> dict[str, Any] | None:
    """A part's mapping with the defaults of its Config filled in; {} or null means no part."""
    if not mapping:
        return None
    _mapping(mapping, dotted)
    if "name" not in mapping:
        raise UserError(f"key {dotted!r} has no 'name'; expected one of {', '.join(table_names(table))}")
    cls = lookup(table, mapping["name"])
    own = {key: value for key, value in mapping.items() if key != "name"}
    return {"name": mapping["name"], **dataclasses.asdict(resolve(cls.Config, own, where=dotted))}


def nested_schema(schema: type, key: str) -> type | None:
    """The dataclass a field holds, if it holds one (also `X | None`)."""
    hint = field_types(schema).get(key)
    for candidate in (hint, *getattr(hint, "__args__", ())):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def type_name(schema: type, key: str) -> str:
    """A field's type as a person would write it: `int`, `str | None`, `list[float]`."""
    hint = field_types(schema)[key]
    return hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", ()) else str(hint)


def field_types(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _leaf_schema(schema: type) -> type:
    """`schema` without its nested dataclasses and parts, for OmegaConf to check the plain values' types."""
    hints = field_types(schema)
    kept = []
    for field in dataclasses.fields(schema):
        if nested_schema(schema, field.name) or {"part", "parts"} & field.metadata.keys():
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=field.default_factory)
        elif field.default is dataclasses.MISSING:
            default = dataclasses.field(default=MISSING)
        else:
            default = dataclasses.field(default=field.default)
        kept.append((field.name, hints[field.name], default))
    return dataclasses.make_dataclass(schema.__name__, kept)


def dump(config: Any) -> str:
    """A resolved config as YAML that reads back to the same config."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def read_entry(entry: str) -> dict[str, Any]:
    """`key.sub=value` as a mapping."""
    dotted, _, text = entry.partition("=")
    try:
        value = _read_text(text) if text else ""
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {entry!r}: {str(error).splitlines()[0]}; expected key=value") from error
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value
