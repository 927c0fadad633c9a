"""What `--help` prints: the options of a job, or with `--help PART` those of a group, a part or a table of parts."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from common.errors import UserError, nearest
from common.schema import MISSING, default_of, hints, import_name, lookup, nested_schema, type_name

__all__ = ["Alias", "is_switch", "options", "show"]

Alias = str | Callable[[str], list[str]]
"""A flag's meaning: a dotted key, or a function from the flag's value to dotlist entries."""

USAGE = (
    "Options are given as --flag VALUE or key=value, in a YAML file (--config FILE, repeatable) or both; the command "
    "line wins. --dry-run prints the resolved options and stops. --help PART prints the options of a group or of a "
    "part, such as --help optim, --help quantizer or --help quantizer=vq."
)

Option = tuple[str, type, "dataclasses.Field[Any]"]
"""Dotted key, the dataclass that declares it and its field."""


def options(schema: type, prefix: str = "") -> Iterator[Option]:
    """Every option of a schema, those of nested groups included, in the order of declaration."""
    for field in dataclasses.fields(schema):
        if nested := nested_schema(schema, field.name):
            yield from options(nested, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", schema, field


def is_switch(schema: type, flag: str, aliases: Mapping[str, Alias]) -> bool:
    """Whether a flag takes no value."""
    if flag.startswith("no-") and flag not in aliases:
        return True
    target = aliases.get(flag, flag.replace("-", "_"))
    if callable(target):
        return getattr(target, "switch", False)
    *groups, name = target.split(".")
    for key in groups:
        schema = nested_schema(schema, key)
        if schema is None:
            return False
    return hints(schema).get(name) is bool


def show(schema: type, aliases: Mapping[str, Alias], about: str, asked: list[str]) -> str:
    """The text of `--help` (`asked` empty) or `--help PART`, wrapped at the terminal's width.

    Raises: UserError if there is no such part.
    """
    flags: dict[str, list[str]] = {}
    for flag, target in aliases.items():
        if isinstance(target, str) and "." not in flag:
            flags.setdefault(target, []).append(f"--{flag}")
    if asked and not asked[0].startswith("--"):
        return _part(schema, *asked[0].partition("=")[::2], flags)
    meant = sorted(f"--{flag}" for flag, target in aliases.items() if callable(target) and "." not in flag)
    lines = [about.strip(), "", *_wrap(USAGE, "")]
    lines += _group(schema, "", flags)
    if meant:
        lines += ["", *_wrap(f"Flags of the papers' scripts that stand for several options: {', '.join(meant)}", "")]
    return "\n".join(lines)


def _group(schema: type, prefix: str, flags: Mapping[str, list[str]]) -> list[str]:
    """The options of a dataclass; nested groups follow the group's own options, each under its heading."""
    own = [field for field in dataclasses.fields(schema) if not nested_schema(schema, field.name)]
    lines = ["" if own else None, *(line for field in own for line in _option(schema, field, prefix, flags))]
    for field in dataclasses.fields(schema):
        if nested := nested_schema(schema, field.name):
            title = field.metadata.get("help") or (nested.__doc__ or "").strip().splitlines()[0]
            off = " (off by default)" if default_of(field) is None else ""
            lines += ["", *_wrap(f"{prefix}{field.name}: {title}{off}", "")]
            lines += _group(nested, f"{prefix}{field.name}.", flags)[1:]
    return [line for line in lines if line is not None]


def _option(schema: type, field: dataclasses.Field[Any], prefix: str, flags: Mapping[str, list[str]]) -> list[str]:
    dotted, help = f"{prefix}{field.name}", field.metadata.get("help", "")
    spelled = flags.get(dotted, []) + ([] if prefix else [f"--{field.name.replace('_', '-')}"])
    default = default_of(field)
    shown = str(default).lower() if isinstance(default, bool) else "null" if default is None else str(default)
    table = field.metadata.get("part") or field.metadata.get("parts")
    if table:
        kind = f"{'part' if 'part' in field.metadata else 'parts'}: {', '.join(import_name(table))}"
        shown = _brief(default)
    else:
        kind = type_name(schema, field)
    needed = "required" if default is MISSING or default == MISSING else f"default {shown or repr(shown)}"
    return [
        *_wrap(", ".join(dict.fromkeys([dotted, *spelled])) + f"  ({kind}; {needed})", "  "),
        *_wrap(help, "      "),
    ]


def _brief(default: Mapping[str, Any]) -> str:
    """A part's default as its name, a map of parts' as key: name."""
    if "name" in default:
        return default["name"]
    return ", ".join(f"{key}: {value['name']}" for key, value in default.items()) or "none"


def _wrap(text: str, indent: str) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, 60), 120)
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}    " if indent == "  " else indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _part(schema: type, name: str, choice: str, flags: Mapping[str, list[str]]) -> str:
    """The options of the group, part or single option whose dotted key is `name`, or ends in it."""
    found: list[str] = []
    known: set[str] = set()
    pending = [(schema, "", True)]
    tables: set[str] = set()
    while pending:
        owner, prefix, mine = pending.pop(0)
        for field in dataclasses.fields(owner):
            dotted = f"{prefix}{field.name}"
            known |= {dotted, field.name}
            asked = name in (dotted, field.name) or dotted.endswith(f".{name}")
            own = flags if mine else {}
            if nested := nested_schema(owner, field.name):
                pending.append((nested, f"{dotted}.", mine))
                found += [f"{dotted}:", *_group(nested, f"{dotted}.", own), ""] if asked else []
                continue
            found += [*_option(owner, field, prefix, own), ""] if asked else []
            table = field.metadata.get("part") or field.metadata.get("parts")
            if table and (asked or table not in tables):
                tables.add(table)
                for each in [choice] if asked and choice else import_name(table):
                    part = lookup(table, each)
                    title = f"{dotted}.{each}" if "parts" in field.metadata else f"{dotted}.name={each}"
                    below = f"{title}." if "parts" in field.metadata else f"{dotted}."
                    pending.append((part.Config, below, False))
                    if asked:
                        about = " ".join((part.__doc__ or "").strip().split("\n\n")[0].split())
                        found += _wrap(f"{title}: {about}".rstrip(": "), "")
                        found += [*_group(part.Config, below, {}), ""]
    if not found:
        raise UserError(f"--help got {name!r}{nearest(name, known)}; expected a group, a part or an option of this job")
    return "\n".join(found).rstrip()
