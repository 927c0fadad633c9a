"""One schema, three spellings: YAML files with `base:`, a dotlist (`optim.lr=1e-4`) and flags (`--lr 1e-4`).

A job's options are a dataclass. A field that holds a swappable part (`part(...)`) or a map of optional
parts (`parts(...)`) names the table the part is looked up in; the part's own keys are checked by that
class's nested `Config`. Precedence: schema defaults < YAML < command line, left to right.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from common.errors import UserError, nearest
from common.help import Alias, is_switch, show
from common.schema import check, default_of, hints, import_name, lookup, nested_schema, opt, part, parts, type_name

__all__ = [
    "MISSING",
    "Alias",
    "build",
    "dump",
    "lookup",
    "main",
    "merge",
    "opt",
    "parse",
    "part",
    "parts",
    "read_yaml",
    "resolve",
    "typed",
]


# ---------------------------------------------------------------------------------------------- reading


class Text(str):
    """A scalar as the user wrote it (`0042`, `no`, `1e3`): the option decides whether it is text or a number."""


class _Loader(yaml.SafeLoader):
    """YAML without timestamps, with `1e-4` as a float; a key given twice is an error."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"key {twice!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _TextLoader(_Loader):
    """YAML whose numbers, booleans and nulls stay as written."""


for _tag in ("int", "float", "bool", "null"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: Text(node.value))


def typed(value: Any) -> Any:
    """`value` with every Text in it read by YAML's rules: `no` is False, `1e-4` a float."""
    if isinstance(value, Text):
        return _Loader(value).get_single_data()
    if isinstance(value, Mapping):
        return {typed(key): typed(each) for key, each in value.items()}
    return [typed(each) for each in value] if isinstance(value, list) else value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a plain dict, its `base:` files (relative to it) merged underneath. `1e-4` is a float."""
    return typed(_read_text(path))


def _read_text(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"config file {str(path)!r} does not exist; expected a YAML file (--config FILE)")
    if path.resolve() in seen:
        raise UserError(f"config file {str(path)!r} is its own base; remove one 'base:' from the circle")
    try:
        raw = _TextLoader(path.read_bytes()).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    raw = {} if raw in (None, "") else raw
    if not isinstance(raw, dict):
        raise UserError(f"config file {str(path)!r} holds a {type(raw).__name__}; expected a mapping of keys to values")
    bases = raw.pop("base", None) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, _read_text(path.parent / base, (*seen, path.resolve())))
    return merge(merged, raw)


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


def _read_entry(entry: str) -> dict[str, Any]:
    """`key.sub=value` as nested mappings."""
    key, _, value = entry.partition("=")
    read: Any = Text(value)
    if value.strip()[:1] in ("{", "["):
        try:
            read = _TextLoader(value).get_single_data()
        except yaml.YAMLError as error:
            raise UserError(f"cannot read {entry!r}: {' '.join(str(error).split())}; expected key=value") from error
    for name in reversed(key.split(".")):
        read = {name: read}
    return read


# ---------------------------------------------------------------------------------------------- checking


class Part(dict):
    """A part's `name` and all its options. `config` holds the same options as an instance of the class's Config."""

    config: Any = None


def build(table: str, mapping: Mapping[str, Any], **context: Any) -> Any:
    """Instantiate the part that `mapping` (with a `name`) describes: `cls(config, **context)`."""
    whole = mapping if getattr(mapping, "config", None) else _complete(table, mapping, mapping["name"])
    return lookup(table, whole["name"])(whole.config, **context)


def resolve(schema: type, raw: Mapping[str, Any], where: str = "") -> Any:
    """Check `raw` against the dataclass `schema` and return an instance with every default filled in.

    Raises: UserError for an unknown key (with the nearest known one), a wrong type, a value out of range, or a
    missing value.
    """
    found: dict[tuple[str, ...], Any] = {}
    plain = _plain(schema, raw, where, (), found)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except OmegaConfBaseException as error:
        raise _refused(schema, plain, error, where) from error
    for (*path, name), value in found.items():
        owner = config
        for step in path:
            owner = getattr(owner, step)
        setattr(owner, name, value)
    _check(config, where)
    return config


def _refused(schema: type, plain: Any, error: OmegaConfBaseException, where: str) -> UserError:
    """OmegaConf's complaint about a value in one sentence."""
    key = str(error.full_key)
    *groups, name = key.partition("[")[0].split(".")
    for group in groups:
        schema = nested_schema(schema, group) or schema
    dotted = ".".join(filter(None, (where, key)))
    field = next((field for field in dataclasses.fields(schema) if field.name == name), None)
    if isinstance(error, MissingMandatoryValue):
        flag = "" if "." in dotted else f" or --{name.replace('_', '-')} VALUE"
        return UserError(f"{dotted!r} is not set ({field.metadata['help']}); give it as {dotted}=VALUE{flag}")
    if field is None or isinstance(error, InterpolationResolutionError | GrammarParseError):
        return UserError(f"key {dotted!r}: {str(error).splitlines()[0]}")
    for step in [*groups, name]:
        plain = plain[step]
    return UserError(f"key {dotted!r} got {plain!r}; expected {type_name(schema, field)}")


def _plain(schema: type, raw: Any, where: str, path: tuple[str, ...], found: dict[tuple[str, ...], Any]) -> Any:
    """`raw` in the form OmegaConf checks: Text as its option reads it. Parts are completed and put into `found`."""
    if not isinstance(raw, Mapping):
        raise UserError(f"key {where!r} got {raw!r}; expected a mapping of keys to values")
    types, plain = hints(schema), {}
    for key in raw:
        if key not in types:
            dotted = ".".join(filter(None, (where, str(key))))
            raise UserError(f"unknown key {dotted!r}{nearest(str(key), types)}; known here: {', '.join(types)}")
    for field in dataclasses.fields(schema):
        key, value = field.name, raw.get(field.name, dataclasses.MISSING)
        dotted, below = ".".join(filter(None, (where, key))), (*path, key)
        if table := field.metadata.get("part"):
            found[below] = _complete(table, merge(default_of(field), {} if key not in raw else value), dotted)
        elif table := field.metadata.get("parts"):
            given = merge(default_of(field), _switch(raw.get(key)) or {})
            chosen = {name: _switch(each) for name, each in given.items()}
            found[below] = {
                name: _complete(table, merge({"name": name}, each), f"{dotted}.{name}")
                for name, each in chosen.items()
                if each is not None
            }
        elif nested := nested_schema(schema, key):
            optional = type(None) in typing.get_args(types[key])
            value = (None if default_of(field) is None else {}) if key not in raw else value
            value = _switch(value) if optional else value
            plain[key] = None if value is None and optional else _plain(nested, value, dotted, below, found)
        elif key in raw:
            plain[key] = _leaf(types[key], value)
    return plain


def _switch(value: Any) -> Any:
    """What switches an optional group of options: true = its defaults, false and null = off."""
    value = typed(value) if isinstance(value, Text) else value
    return {} if value is True else None if value is False else value


def _leaf(hint: Any, value: Any) -> Any:
    """A value as an option of type `hint` reads it: a string takes its text as it is, `~/` is the home folder."""
    inside = typing.get_args(hint)
    if isinstance(value, list):
        holder = next((each for each in (hint, *inside) if typing.get_origin(each) is list), list[Any])
        return [_leaf(typing.get_args(holder)[0], each) for each in value]
    if not isinstance(value, str):
        return typed(value)
    if isinstance(value, Text) and value in ("", "~", "null", "Null", "NULL"):
        return None
    if hint is str or str in inside:
        return os.path.expanduser(value) if value.startswith("~/") else str(value)
    read = typed(value)
    return str(value) if type(read) is int and hint is not Any else read  # OmegaConf reads 010 as 10, YAML as 8


def _check(config: Any, where: str) -> None:
    for field in dataclasses.fields(config):
        value, dotted = getattr(config, field.name), ".".join(filter(None, (where, field.name)))
        if dataclasses.is_dataclass(value):
            _check(value, dotted)
        else:
            check(field, value, dotted)


def _complete(table: str, mapping: Any, dotted: str) -> Part | None:
    """A part's mapping with the defaults of its Config filled in; {} or null means no part."""
    mapping = _switch(mapping)
    if not mapping:
        return None
    if not isinstance(mapping, Mapping):
        raise UserError(f"key {dotted!r} got {mapping!r}; expected a mapping of keys to values")
    if "name" not in mapping:
        raise UserError(f"key {dotted!r} has no 'name'; expected one of {', '.join(sorted(import_name(table)))}")
    name = str(mapping["name"])
    own = {key: value for key, value in mapping.items() if key != "name"}
    config = resolve(lookup(table, name).Config, own, where=dotted)
    whole = Part({"name": name} | dataclasses.asdict(config))
    whole.config = config
    return whole


def dump(config: Any) -> str:
    """A resolved config as YAML that reads back to the same config."""
    return OmegaConf.to_yaml(_dicts(dataclasses.asdict(config)))


def _dicts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _dicts(each) for key, each in value.items()}
    return [_dicts(each) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------- command line


def parse(
    schema: type,
    argv: list[str] | None = None,
    *,
    aliases: Mapping[str, Alias] | None = None,
    about: str = "",
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Any:
    """Read a job's command line.

    Understood, freely mixed: `--config FILE` (repeatable), `key.sub=value`, `--key.sub value`,
    `--flag value`, `--flag=value`, `--flag` / `--no-flag` for booleans, `--dry-run` (print the resolved
    config and exit), `--help [PART]`. Every top-level field of `schema` is also a flag (`_` written as `-`);
    `aliases` adds the spellings of the papers' READMEs, `translate` turns their YAML files into ours.

    Raises: UserError for anything not understood. SystemExit(0) after --help and --dry-run.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    aliases = dict(aliases or {})
    if "--help" in argv or "-h" in argv:
        at = next(i for i, word in enumerate(argv) if word in ("--help", "-h"))
        print(show(schema, aliases, about, argv[at + 1 : at + 2]))
        raise SystemExit(0)
    raw: dict[str, Any] = {}
    command_line: dict[str, Any] = {}
    fields = set(hints(schema))
    dry_run = "--dry-run" in argv
    words = [word for word in argv if word != "--dry-run"]
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if flag.startswith("--"):
            flag = flag[2:]
            if not equals:
                value = _value(words, is_switch(schema, flag, aliases))
        elif not equals:
            raise UserError(f"got {flag!r}; expected --flag VALUE or key=value (see --help)")
        elif flag not in {*aliases, "config"}:
            command_line = merge(command_line, _read_entry(f"{flag}={value}"))
            continue
        if flag == "config" or (flag == "model-config" and flag not in aliases and "model_config" not in fields):
            raw = merge(raw, respell(translate(_read_text(value)), aliases))
            continue
        for entry in _flag_entries(fields, flag, value, aliases):
            command_line = merge(command_line, _read_entry(entry))
    config = resolve(schema, merge(raw, command_line))
    if dry_run:
        print(dump(config), end="")
        raise SystemExit(0)
    return config


def _value(words: list[str], switch: bool) -> str:
    """The value of a flag without `=`: the next word, or `true` where none follows or the flag takes none."""
    takes = bool(words) and not words[0].startswith("--")
    return words.pop(0) if takes and (not switch or words[0].lower() in ("true", "false")) else "true"


def respell(raw: Mapping[str, Any], aliases: Mapping[str, Alias]) -> dict[str, Any]:
    """A YAML's mapping with our keys in the place of the papers': aliases with a dot are keys of their YAML files."""
    theirs: list[str] = []

    def ours(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in mapping.items():
            dotted = f"{prefix}{key}"
            if "." in dotted and dotted in aliases:
                target = aliases[dotted]
                theirs.extend(target(str(value)) if callable(target) else [f"{target}={value}"])
            elif isinstance(value, Mapping):
                deeper = ours(value, f"{dotted}.")
                if deeper or not value:
                    kept[key] = deeper
            else:
                kept[key] = value
        return kept

    rest = ours(raw, "")
    for entry in theirs:
        rest = merge(rest, _read_entry(entry))
    return rest


def _flag_entries(fields: set[str], flag: str, value: str, aliases: Mapping[str, Alias]) -> list[str]:
    """What a flag means, as `key=value` entries."""
    if flag in aliases:
        target = aliases[flag]
        return target(value) if callable(target) else [f"{target}={value}"]
    if "." in flag or flag.replace("-", "_") in fields:
        return [f"{flag.replace('-', '_')}={value}"]
    if flag.startswith("no-"):
        return _flag_entries(fields, flag[3:], "false", aliases)
    known = sorted({*aliases, *(name.replace("_", "-") for name in fields)})
    raise UserError(f"unknown flag '--{flag}'{nearest(flag, known)}; see --help")


def main(job: Callable[[], Any]) -> None:
    """Run a job's `main`, turning a UserError into one sentence on stderr and exit code 2."""
    try:
        job()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # what read our output, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
