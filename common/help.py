"""The text of `--help`: a job's options, and with `--help PART` or `--help PART=NAME` those of a swappable part."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from common.errors import UserError, nearest
from common.schema import bounds, lookup, nested_schema, table_names, type_name

__all__ = ["Alias", "render"]

Alias = str | Callable[[str], list[str]]
"""A flag's meaning: a dotted key, or a function from the flag's value to dotlist entries."""

USAGE = """usage: [--config FILE] [--flag VALUE | key.sub=value ...] [--dry-run] [--help [GROUP | PART[=NAME]]]

Options are keys of a YAML file (--config, repeatable) and of the command line, where the last one counts. A part is a
mapping with a `name`; `--help PART` lists the names and `--help PART=NAME` the options of one. `--help GROUP` shows the
options of a group such as run. --dry-run prints the resolved options and stops."""


def render(schema: type, aliases: Mapping[str, Alias], about: str, topic: str | None = None) -> str:
    """Raises: UserError for a topic that is not a part of this job."""
    if topic:
        return _part(schema, *topic.partition("=")[::2])
    flags = {target: flag for flag, target in aliases.items() if isinstance(target, str)}
    lines = [about.strip(), "", USAGE]
    for heading, prefix, group in _groups(schema):
        inside = schema_of(schema, prefix)
        lines += ["", heading, *(line for field in group for line in _option(inside, field, prefix, flags))]
    return "\n".join(lines)


def schema_of(schema: type, prefix: str) -> type:
    """The dataclass behind a dotted prefix such as "model.layout."."""
    for key in prefix.rstrip(".").split(".") if prefix else []:
        schema = nested_schema(schema, key)
    return schema


def _groups(
    schema: type, prefix: str = "", heading: str = "options:"
) -> Iterator[tuple[str, str, list[dataclasses.Field]]]:
    fields = dataclasses.fields(schema)
    yield heading, prefix, [field for field in fields if not nested_schema(schema, field.name)]
    for field in fields:
        nested = nested_schema(schema, field.name)
        if nested:
            dotted = f"{prefix}{field.name}"
            about = field.metadata.get("help") or _summary(nested)
            yield from _groups(nested, f"{dotted}.", f"{dotted}: {about}")


def _option(schema: type, field: dataclasses.Field, prefix: str, flags: Mapping[str, str]) -> list[str]:
    dotted = f"{prefix}{field.name}"
    flag = flags.get(dotted) or ("" if prefix else field.name.replace("_", "-"))
    table = field.metadata.get("part") or field.metadata.get("parts")
    kind = "part" if field.metadata.get("part") else "parts" if table else type_name(schema, field.name)
    notes = [_default(field), *_limits(field.metadata)]
    if table:
        notes.append(f"names: {', '.join(table_names(table))}")
    text = f"{field.metadata.get('help', '')} [{'; '.join(notes)}]"
    return [f"  {dotted}{f'  --{flag}' if flag else ''}  ({kind})", *_wrapped(text, "      ")]


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return f"default {value.get('name', value) if isinstance(value, Mapping) else value}"
    return "required" if field.default in (dataclasses.MISSING, "???") else f"default {_yaml(field.default)}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _limits(about: Mapping[str, Any]) -> list[str]:
    if about.get("choices"):
        return [f"one of {', '.join(about['choices'])}"]
    if about.get("low") is None and about.get("high") is None:
        return []
    return [bounds(about["low"], about["high"])]


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _wrapped(text: str, indent: str) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


def _tables(schema: type, prefix: str = "", deep: bool = True) -> dict[str, str]:
    """Dotted key of every part -> its table; with `deep` also of the parts inside these parts."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        dotted = f"{prefix}{field.name}"
        if nested := nested_schema(schema, field.name):
            found |= _tables(nested, f"{dotted}.", deep)
        elif table := field.metadata.get("part") or field.metadata.get("parts"):
            found[dotted] = table
            for name in table_names(table) if deep else ():
                found |= _tables(lookup(table, name).Config, f"{dotted}.", deep=False)
    return found


def _part(schema: type, key: str, name: str) -> str:
    """`--help KEY`: the options of a group, or the names of a part; `--help KEY=NAME`: the options of a part."""
    groups = {prefix.rstrip("."): (heading, group) for heading, prefix, group in _groups(schema) if prefix}
    tables = _tables(schema)
    matching = [dotted for dotted in (*groups, *tables) if f".{dotted}".endswith(f".{key}")]
    if not matching:
        known = (*groups, *tables)
        raise UserError(f"--help knows no part {key!r}{nearest(key, known)}; known: {', '.join(known) or 'none'}")
    dotted = matching[0]
    if dotted in groups:
        heading, group = groups[dotted]
        inside = schema_of(schema, dotted)
        return "\n".join([heading, *(line for field in group for line in _option(inside, field, f"{dotted}.", {}))])
    table = tables[dotted]
    if not name:
        rows = [f"  {known:<22} {_summary(lookup(table, known))}" for known in table_names(table)]
        return "\n".join([f"{dotted}: one of", *rows, f"\n--help {dotted}=NAME shows the options of one."])
    cls = lookup(table, name)
    options = [line for _, prefix, group in _groups(cls.Config) for field in group
               for line in _option(schema_of(cls.Config, prefix), field, f"{dotted}.{prefix}", {})]  # fmt: skip
    return "\n".join([f"{dotted}={name}", textwrap.indent(inspect.getdoc(cls) or "", "  "), "", *options])
