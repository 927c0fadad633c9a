"""What flags of the papers' scripts mean, as entries of our configs (`common.config.Alias`)."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import UserError

__all__ = ["half", "only", "optional", "switch"]

Expand = Callable[[str], list[str]]


def only(flag: str, *values: str) -> Expand:
    """A flag that has one meaning here: these values are accepted, others are an error."""

    def check(value: str) -> list[str]:
        if value not in values:
            raise UserError(f"--{flag} got {value!r}; expected {' or '.join(values)}")
        return []

    return check


def switch(*entries: str) -> Expand:
    """A flag without a value that stands for fixed entries."""

    def expand(value: str) -> list[str]:
        return list(entries) if value.lower() == "true" else []

    expand.switch = True
    return expand


def half(key: str) -> Expand:
    """fp16 of the papers means "half precision": bf16 has its speed and needs no loss scaling."""
    return lambda value: [f"{key}={'bf16' if value == 'fp16' else value}"]


def optional(key: str) -> Expand:
    """The papers' scripts write None for a value that is not set."""
    return lambda value: [f"{key}={'null' if value == 'None' else value}"]
