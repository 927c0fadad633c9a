"""The exception for errors caused by the user."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can correct.

    The message is one sentence: what was got, what was expected and which key, flag or command corrects it.
    Jobs print it without a traceback and exit with code 2 (`common.config.main`).
    """


def nearest(word: str, known: Iterable[object]) -> str:
    """` (did you mean 'X'?)` with the known name closest to `word`; empty when none is close."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
