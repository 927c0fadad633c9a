"""Ctrl-C and the schedulers' signals: noted, and acted upon between two steps."""

from __future__ import annotations

import signal
import time

REQUEUE = 75  # sysexits' EX_TEMPFAIL: not finished, run the same command again
CTRL_C = 130

ECHO_S = 0.5


class Interrupts:
    """Notes SIGINT, SIGTERM and SIGUSR1 (Slurm's warning before the time limit); a second Ctrl-C leaves at once.

    `launched` says that a launcher started this process: it forwards the terminal's Ctrl-C, so that one press of the
    keys arrives twice within moments.
    """

    def __init__(self, launched: bool) -> None:
        self.received: int | None = None
        self._launched, self._first = launched, 0.0
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._note) for number in watched}

    def _note(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received, self._first = number, time.monotonic()
            if not self._launched:  # the next one ends the process even inside a call that does not return
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif number == signal.SIGINT and time.monotonic() - self._first > ECHO_S:
            raise KeyboardInterrupt

    @staticmethod
    def exit_code(number: int) -> int:
        """130 after Ctrl-C; 75 after what a scheduler sends, which asks for the job to be run again."""
        return CTRL_C if number == signal.SIGINT else REQUEUE

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
