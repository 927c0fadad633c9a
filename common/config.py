"""One schema, three spellings: YAML files with `base:`, a dotlist (`optim.lr=1e-4`) and flags (`--lr 1e-4`).

A job's options are a dataclass. A field that holds a swappable part (`part(...)`) or a map of optional
parts (`parts(...)`) names the table the part is looked up in; the part's own keys are checked by that
class's nested `Config`. Precedence: schema defaults < YAML < command line, left to right.

This module imports no torch, so that `--help` of every job answers at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError, nearest

__all__ = [
    "MISSING",
    "Alias",
    "build",
    "dump",
    "lookup",
    "main",
    "nested_schema",
    "opt",
    "parse",
    "part",
    "parts",
    "plain",
    "read_yaml",
    "resolve",
    "sentence",
    "type_name",
]

Alias = str | Callable[[str], list[str]]
"""A flag's meaning: a dotted key, or a function from the flag's value to dotlist entries."""


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
    return plain(_load(Path(path)))


def _load(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
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
        merged = merge(merged, _load(path.parent / base, (*seen, path.resolve())))
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
    raw = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
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
            absent = plain(value) is None and type(None) in getattr(_hints(schema)[key], "__args__", ())
            deep[key] = None if absent else resolve(nested, _mapping(value, dotted), where=dotted)
        elif {"part", "parts"} & fields[key].metadata.keys():
            deep[key] = value
        else:
            leaves[key] = _typed(value, _hints(schema)[key])
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
            raise UserError(f"{dotted} got {each}; expected {_bounds(low, high)}")


def _bounds(low: float | None, high: float | None) -> str:
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
        raise UserError(f"key {dotted!r} has no 'name'; expected one of {', '.join(sorted(_import(table)))}")
    cls = lookup(table, mapping["name"])
    own = {key: value for key, value in mapping.items() if key != "name"}
    return {"name": mapping["name"], **dataclasses.asdict(resolve(cls.Config, own, where=dotted))}


def nested_schema(schema: type, key: str) -> type | None:
    """The dataclass a field holds, if it holds one (also `X | None`)."""
    hint = _hints(schema).get(key)
    for candidate in (hint, *getattr(hint, "__args__", ())):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def type_name(schema: type, key: str) -> str:
    """A field's type as a person would write it: `int`, `str | None`, `list[float]`."""
    hint = _hints(schema)[key]
    return hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", ()) else str(hint)


def _hints(schema: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(schema)


def _leaf_schema(schema: type) -> type:
    """`schema` without its nested dataclasses and parts, for OmegaConf to check the plain values' types."""
    hints = _hints(schema)
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


# ---------------------------------------------------------------------------------------------- command line


def parse(
    schema: type,
    argv: list[str] | None = None,
    *,
    aliases: Mapping[str, Alias] | None = None,
    about: str = "",
    default_config: str | None = None,
    translate: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Any:
    """Read a job's command line.

    Understood, freely mixed: `--config FILE` (repeatable), `key.sub=value`, `--key.sub value`,
    `--flag value`, `--flag=value`, `--flag` / `--no-flag` for booleans, `--dry-run` (print the resolved
    config and exit), `--help`. Every top-level field of `schema` is also a flag (`_` written as `-`);
    `aliases` adds the spellings of the papers' READMEs, `translate` turns their YAML files into ours.

    Raises: UserError for anything not understood. SystemExit(0) after --help and --dry-run.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    aliases = dict(aliases or {})
    if "--help" in argv or "-h" in argv:
        print(_help(schema, aliases, about))
        raise SystemExit(0)
    raw: dict[str, Any] = _load(Path(default_config)) if default_config else {}
    dry_run = False
    command_line: dict[str, Any] = {}
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--dry-run":
            dry_run = True
            continue
        if not word.startswith("--"):
            key, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"got {word!r}; expected --flag VALUE or key=value (see --help)")
            if key == "config":
                raw = merge(raw, respell(translate(_load(Path(value))), aliases))
                continue
            entries = _flag_entries(schema, key, value, aliases) if key in aliases else [word]
        else:
            flag, equals, value = word[2:].partition("=")
            if not equals:
                takes_none = at >= len(argv) or argv[at].startswith("--") or _is_switch(schema, flag, aliases)
                if takes_none and not (at < len(argv) and argv[at].lower() in ("true", "false")):
                    value = "true"
                else:
                    value = argv[at]
                    at += 1
            if flag == "config" or (flag == "model-config" and not _is_known(schema, flag, aliases)):
                raw = merge(raw, respell(translate(_load(Path(value))), aliases))
                continue
            entries = _flag_entries(schema, flag, value, aliases)
        for entry in entries:
            command_line = merge(command_line, _read_entry(entry))
    config = resolve(schema, merge(raw, command_line))
    if dry_run:
        print(dump(config), end="")
        raise SystemExit(0)
    return config


def _is_known(schema: type, flag: str, aliases: Mapping[str, Alias]) -> bool:
    return flag in aliases or flag.replace("-", "_") in {field.name for field in dataclasses.fields(schema)}


def _read_entry(entry: str) -> dict[str, Any]:
    """`key.sub=value` as a mapping."""
    dotted, _, text = entry.partition("=")
    try:
        value = _read_text(text) if text else ""
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {entry!r}: {str(error).splitlines()[0]}; expected key=value") from error
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


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


def _is_switch(schema: type, flag: str, aliases: Mapping[str, Alias]) -> bool:
    if flag.startswith("no-") and flag not in aliases:
        return True
    target = aliases.get(flag, flag.replace("-", "_"))
    if callable(target):
        return getattr(target, "switch", False)
    for key in target.split(".")[:-1]:
        nested = nested_schema(schema, key)
        if nested is None:
            return False
        schema = nested
    return _hints(schema).get(target.split(".")[-1]) is bool


def _flag_entries(schema: type, flag: str, value: str, aliases: Mapping[str, Alias]) -> list[str]:
    fields = {field.name for field in dataclasses.fields(schema)}
    if flag in aliases:
        target = aliases[flag]
        return target(value) if callable(target) else [f"{target}={value}"]
    if "." in flag or flag.replace("-", "_") in fields:
        return [f"{flag.replace('-', '_')}={value}"]
    if flag.startswith("no-"):
        inverted = _flag_entries(schema, flag[3:], "false", aliases)
        return inverted
    known = sorted({*aliases, *(name.replace("_", "-") for name in fields)})
    raise UserError(f"unknown flag '--{flag}'{nearest(flag, known)}; see --help")


def _help(schema: type, aliases: Mapping[str, Alias], about: str) -> str:
    lines = [about.strip(), "", "usage: [--config FILE] [--flag VALUE | key.sub=value ...] [--dry-run]", "", "options:"]
    spelled = {target: flag for flag, target in aliases.items() if isinstance(target, str)}

    def walk(schema: type, prefix: str) -> None:
        for field in dataclasses.fields(schema):
            dotted = f"{prefix}{field.name}"
            nested = nested_schema(schema, field.name)
            if nested:
                lines.append(f"  {dotted}: {field.metadata.get('help', '')}".rstrip(": "))
                walk(nested, f"{dotted}.")
                continue
            flag = (
                f"--{spelled[dotted]}"
                if dotted in spelled
                else (f"--{field.name.replace('_', '-')}" if not prefix else "")
            )
            default = (
                field.default
                if field.default is not dataclasses.MISSING
                else (field.default_factory() if field.default_factory is not dataclasses.MISSING else MISSING)
            )
            shown = "required" if default == MISSING else f"default {default!r}"
            table = field.metadata.get("part") or field.metadata.get("parts")
            about_table = f" (names: {table})" if table else ""
            lines.append(f"  {dotted}{'  ' + flag if flag else ''}")
            lines.append(f"      {field.metadata.get('help', '')}{about_table} [{shown}]")

    walk(schema, "")
    return "\n".join(lines)


def main(job: Callable[[], Any]) -> None:
    """Run a job's `main`. User errors, failed file operations and a missing compiler end in one sentence and code 2."""
    try:
        job()
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


def sentence(error: BaseException) -> str | None:
    """The message of an error that the user can mend, or None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    # safetensors and torch.save raise errors of their own when a file cannot be written.
    if isinstance(error, OSError) or re.search("^Error while serializing: I/O|PytorchStreamWriter failed", str(error)):
        path = f"{filename!r}: " if (filename := getattr(error, "filename", None)) else ""
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        return (
            f"{path}{reason}; free space, mend the permissions or choose another path, then run the same command again"
        )
    if re.search(r"No working C\+\+ compiler|Failed to find C compiler|find a working triton", str(error)):
        return (
            "torch.compile finds no working compiler; install one (g++ for the CPU, gcc and triton for CUDA) or leave "
            "--compile (run.compile, compile) out"
        )
    return None
