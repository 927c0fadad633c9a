"""Declares the options of jobs and parts: fields of dataclasses with a help text, checks and tables of parts."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import MISSING

from common.errors import UserError, nearest

__all__ = [
    "MISSING", "check", "default_of", "hints", "import_name", "lookup", "nested_schema", "opt", "part", "parts",
    "type_name",
]  # fmt: skip


def opt(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A documented option.

    default: mutable defaults are copied for every instance; MISSING makes the option required.
    choices: the values allowed. low, high: the smallest and the largest value allowed. All three also apply to each
    element of a list; None is always allowed where the type allows it.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def part(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A mapping with a `name` from `table` ("package.module:TABLE"); its other keys belong to that class's Config."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "part": table})


def parts(table: str, help: str, default: Mapping[str, Any] | None = None) -> Any:
    """A map of optional parts: key -> mapping; true = defaults, null or false = off. `name` defaults to the key."""
    return dataclasses.field(default_factory=lambda: dict(default or {}), metadata={"help": help, "parts": table})


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default, MISSING if it is required."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return MISSING if field.default is dataclasses.MISSING else field.default


def hints(schema: type) -> dict[str, Any]:
    """Field name -> type."""
    return typing.get_type_hints(schema)


def nested_schema(schema: type, key: str) -> type | None:
    """The dataclass that a field holds, also as `X | None`; None for other fields."""
    hint = hints(schema).get(key)
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def limits(field: dataclasses.Field[Any]) -> str:
    """The range of a numeric option: `>= 1`, `<= 1`, `0 to 1`; empty without one."""
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return "" if low is high else f">= {low}" if high is None else f"<= {high}"


def type_name(schema: type, field: dataclasses.Field[Any]) -> str:
    """What an option accepts, as shown to users: `int >= 1`, `none | bf16`, `list of float`, `str or null`."""
    hint = hints(schema)[field.name]
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    optional = " or null" if type(None) in typing.get_args(hint) else ""
    hint = members[0] if optional else hint
    values = typing.get_args(hint)[-1:]
    shown = " | ".join(map(str, field.metadata.get("choices") or ())) or (values[0] if values else hint).__name__
    container = {list: "list of ", dict: "map of "}.get(typing.get_origin(hint), "")
    return " ".join(filter(None, (container + shown.replace("Any", "options"), limits(field)))) + optional


def check(field: dataclasses.Field[Any], value: Any, dotted: str) -> None:
    """Raises: UserError if a value is not one of an option's `choices`, or not between its `low` and `high`."""
    choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
    for each in value if isinstance(value, list) else [value]:
        if each is None:
            continue
        if choices and each not in choices:
            raise UserError(f"{dotted} got {each!r}; expected {' or '.join(map(str, choices))}")
        if (low is not None and not each >= low) or (high is not None and not each <= high):  # NaN, too
            raise UserError(f"{dotted} got {each!r}; expected a value {limits(field)}")


def import_name(path: str) -> Any:
    """The object that "module:attribute" names."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import {path!r} ({error}); expected 'module:Class' importable from here") from error


def lookup(table: str, name: str) -> type:
    """The class called `name` in `table`, or `module:Class` from outside the tree.

    Raises: UserError with the nearest known name.
    """
    if ":" in name:
        return import_name(name)
    known = import_name(table)
    if name not in known:
        raise UserError(
            f"unknown {table.partition(':')[2].lower()} name {name!r}{nearest(name, known)}; "
            f"known: {', '.join(sorted(known))}, or 'module:Class' for your own"
        )
    return known[name]
