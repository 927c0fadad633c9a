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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from common.errors import UserError, nearest

# ---------------------------------------------------------------------------------------------- declaring


def opt(
    default: Any, help: str, choices: Sequence[str] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A documented option. Mutable defaults are copied for every instance; MISSING makes the option required.

    Args:
        choices: the only texts that are accepted. low, high: inclusive bounds of a number. All three apply to each
            element of a list.
    """
    about = {"help": help, "choices": tuple(choices), "low": low, "high": high}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


def part(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A mapping with a `name` from `table` ("package.module:TABLE"); its other keys belong to that class's Config."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "part": table})


def parts(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A map of optional parts: key -> mapping; true = defaults, null or false = off. `name` defaults to the key."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "parts": table})


def field_types(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def nested_schema(schema: type, key: str) -> type | None:
    """The dataclass that a field holds, also as `X | None`; None for other fields."""
    hint = field_types(schema).get(key)
    held = (hint, *typing.get_args(hint))
    return next((each for each in held if isinstance(each, type) and dataclasses.is_dataclass(each)), None)


def type_name(schema: type, key: str) -> str:
    """A field's type as shown to users: `int`, `str | None`, `list[float]`."""
    hint = field_types(schema)[key]
    return (hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)).replace("typing.", "")


def default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


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


# ---------------------------------------------------------------------------------------------- reading


class Text(str):
    """A scalar as the user wrote it (`0042`, `no`, `1e3`): the option decides whether it is text or a number."""


class _Loader(yaml.SafeLoader):
    """YAML without timestamps and with `1e-4` as a float, which YAML 1.1 takes for a string."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"key {twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


class _TextLoader(_Loader):
    """YAML whose numbers, booleans and nulls stay as written."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)
for _tag in ("int", "float", "bool", "null"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: Text(node.value))


def plain(value: Any) -> Any:
    """`value` with every Text in it read by YAML's rules: `no` is False, `1e-4` a float."""
    if isinstance(value, Text):
        try:
            return _Loader(value).get_single_data()
        except (yaml.YAMLError, ValueError):
            return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


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
    return plain(load_yaml(path))


def load_yaml(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """As `read_yaml`, with every number, boolean and null as Text."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"config file {str(path)!r} does not exist; expected a YAML file (--config FILE)")
    if path.resolve() in seen:
        raise UserError(f"config file {str(path)!r} is its own base; remove one 'base:' from the circle")
    try:
        raw = _read_text(path.read_text("utf-8-sig"))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        raise UserError(f"config file {str(path)!r} is not valid YAML: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config file {str(path)!r} does not hold a mapping of keys to values")
    bases = plain(raw.pop("base", None)) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, load_yaml(path.parent / base, (*seen, path.resolve())))
    return merge(merged, raw)


def _read_text(text: str) -> Any:
    raw = _TextLoader(text).get_single_data()
    if "${" not in text:
        return raw
    return OmegaConf.to_container(OmegaConf.create(plain(raw)), resolve=True)  # interpolations


def read_entry(entry: str) -> dict[str, Any]:
    """`key.sub=value` as a mapping. A value in braces or brackets is YAML; any other is kept as Text."""
    dotted, _, text = entry.partition("=")
    value: Any = Text(text)
    if text.lstrip().startswith(("{", "[")):
        try:
            value = _read_text(text)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            raise UserError(f"cannot read {entry!r}: {str(error).splitlines()[0]}; expected key=value") from error
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


# ---------------------------------------------------------------------------------------------- checking


class Part(dict):
    """A part's `name` and all its options; `config` holds the same options as an instance of its class's Config."""

    config: Any = None


def build(table: str, mapping: Mapping[str, Any], **context: Any) -> Any:
    """Instantiate the part that `mapping` (with a `name`) describes: `cls(config, **context)`."""
    whole = mapping if isinstance(mapping, Part) and mapping.config else _complete(table, mapping, mapping["name"])
    return lookup(table, whole["name"])(whole.config, **context)


def resolve(schema: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Check `raw` against the dataclass `schema` and return an instance with every default filled in.

    Raises: UserError for an unknown key (with the nearest known one), a wrong type, a value out of range, or a
    missing value.
    """
    found: dict[tuple[str, ...], Any] = {}
    given = _read(schema, raw, where, (), found)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        raise _refused(schema, given, error, where) from error
    for (*groups, name), value in found.items():
        owner = config
        for group in groups:
            owner = getattr(owner, group)
        setattr(owner, name, value)
    _check(config, where)
    return config


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _read(schema: type, raw: Any, where: str, groups: tuple[str, ...], found: dict[tuple[str, ...], Any]) -> Any:
    """`raw` as OmegaConf checks it, every Text read as its option asks. Completed parts are put into `found`."""
    types = field_types(schema)
    if unknown := next((str(key) for key in _mapping(raw, where) if key not in types), None):
        dotted = _join(where, unknown)
        raise UserError(f"unknown key {dotted!r}{nearest(unknown, types)}; known here: {', '.join(types)}")
    given = {}
    for field in dataclasses.fields(schema):
        key, default, dotted, at = field.name, default_of(field), _join(where, field.name), (*groups, field.name)
        if table := field.metadata.get("part"):
            found[at] = _complete(table, merge(default, raw.get(key, {})), dotted)
        elif table := field.metadata.get("parts"):
            given_parts = merge(default, _mapping(_switch(raw.get(key)) or {}, dotted))
            switched = {name: _switch(value) for name, value in given_parts.items()}
            found[at] = {
                name: _complete(table, merge({"name": name}, value), f"{dotted}.{name}")
                for name, value in switched.items()
                if value is not None
            }
        elif nested := nested_schema(schema, key):
            value = raw.get(key, None if default is None else {})
            optional = type(None) in typing.get_args(types[key])
            value = _switch(value) if optional else value
            given[key] = None if value is None and optional else _read(nested, value, dotted, at, found)
        elif key in raw:
            given[key] = _typed(raw[key], types[key])
    return given


def _mapping(value: Any, dotted: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"key {dotted!r} got {value!r}; expected a mapping of keys to values")
    return value


def _switch(value: Any) -> Any:
    """An optional group or part: true = its defaults, false and null = off."""
    value = plain(value) if isinstance(value, Text) else value
    return {} if value is True else None if value is False else value


def _typed(value: Any, hint: Any) -> Any:
    """A leaf's value as its type wants it: text stays as it was written, and a leading `~` is the home folder."""
    kinds = (hint, *typing.get_args(hint))
    if isinstance(value, list):
        held = next((typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list), Any)
        return [_typed(item, held) for item in value]
    if not isinstance(value, str):
        return plain(value)
    if isinstance(value, Text) and type(None) in kinds and value.lower() in ("", "null", "~"):
        return None
    if str in kinds:
        path = os.path.expanduser(value) if value == "~" or value.startswith("~/") else str(value)
        return path.replace("${", r"\${")  # which OmegaConf reads as plain text
    read = plain(value)
    decimal = type(read) is int and hint is not Any and re.fullmatch("[-+]?0*[1-9][0-9:_]*", value)
    return str(value) if decimal else read  # OmegaConf reads 010 as 10 and refuses 1:30, YAML 1.1 reads 8 and 90


def _refused(schema: type, given: Any, error: OmegaConfBaseException, where: str) -> UserError:
    """OmegaConf's error in one sentence."""
    names, dotted = re.split(r"[.\[]", str(error.full_key)), _join(where, error.full_key)
    while len(names) > 1 and (nested := nested_schema(schema, names[0])):
        schema, given, names = nested, given.get(names[0], {}), names[1:]
    name = names[0]
    if isinstance(error, MissingMandatoryValue):
        help = next(field for field in dataclasses.fields(schema) if field.name == name).metadata["help"]
        flag = f"--{name.replace('_', '-')}"
        return UserError(f"{dotted!r} is not set ({help}); give it as {dotted}=VALUE or {flag} VALUE")
    return UserError(f"key {dotted!r} got {given.get(name)!r}; expected {type_name(schema, name)}")


def _check(config: Any, where: str) -> None:
    """Raises: UserError for a value outside the choices or bounds of its field."""
    for field in dataclasses.fields(config):
        value, dotted = getattr(config, field.name), _join(where, field.name)
        choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
        if dataclasses.is_dataclass(value):
            _check(value, dotted)
        for each in value if isinstance(value, list) else [value]:
            if choices and each is not None and each not in choices:
                raise UserError(f"{dotted} got {each!r}; expected {', '.join(choices[:-1])} or {choices[-1]}")
            if isinstance(each, int | float) and not (low is None or each >= low) & (high is None or each <= high):
                raise UserError(f"{dotted} got {each}; expected {bounds(low, high)}")


def bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _complete(table: str, mapping: Any, dotted: str) -> Part | None:
    """A part's mapping with the defaults of its Config filled in; {}, null and false mean no part."""
    mapping = _switch(mapping)
    if not mapping:
        return None
    if "name" not in _mapping(mapping, dotted):
        raise UserError(f"key {dotted!r} has no 'name'; expected one of {', '.join(table_names(table))}")
    own = {key: value for key, value in mapping.items() if key != "name"}
    config = resolve(lookup(table, mapping["name"]).Config, own, where=dotted)
    whole = Part({"name": str(mapping["name"])} | dataclasses.asdict(config))
    whole.config = config
    return whole


def dump(config: Any) -> str:
    """A resolved config as YAML that reads back to the same config."""
    return OmegaConf.to_yaml(plain(dataclasses.asdict(config)))
