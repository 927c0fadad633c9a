"""Errors caused by the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error caused by the user; jobs print its message and exit with code 2.

    The message is one sentence: what was got, what was expected, and which key, flag or command mends it.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """" (did you mean 'x'?)" for the most similar of the known words, or nothing."""
    close = difflib.get_close_matches(word, [str(each) for each in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
