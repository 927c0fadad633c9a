"""Records Ctrl-C and the schedulers' signals; the loop acts on them between two steps."""

from __future__ import annotations

import signal
import time

REQUEUE = 75  # sysexits' EX_TEMPFAIL: not finished, run the same command again
CTRL_C = 130

ECHO_S = 0.5


class Interrupts:
    """Records SIGINT, SIGTERM and SIGUSR1 (Slurm's warning before the time limit); a second Ctrl-C ends the process.

    `launched`: a launcher started this process. It forwards the terminal's Ctrl-C, so that one Ctrl-C arrives twice
    within `ECHO_S` seconds.
    """

    def __init__(self, launched: bool) -> None:
        self.received: int | None = None
        self._launched, self._first = launched, 0.0
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._note) for number in watched}

    def _note(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received, self._first = number, time.monotonic()
            if not self._launched:  # the default handler works inside blocking calls as well
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif number == signal.SIGINT and time.monotonic() - self._first > ECHO_S:
            raise KeyboardInterrupt

    @staticmethod
    def exit_code(number: int) -> int:
        """130 after Ctrl-C; 75 after a scheduler's signal, which asks to run the job again."""
        return CTRL_C if number == signal.SIGINT else REQUEUE

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
