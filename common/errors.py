"""Errors caused by the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest"]


class UserError(Exception):
    """An error caused by the user; exit code 2.

    The message is one sentence: what was got, what was expected, and which key, flag or command mends it. Jobs print
    it without a traceback (`common.config.main`).
    """


def nearest(word: str, known: Iterable[object]) -> str:
    """The hint " (did you mean 'x'?)" with the known name closest to `word`; empty if none is close."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
