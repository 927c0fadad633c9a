"""Detects non-finite steps and unhealthy metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.options import RunConfig


class NotFinite:
    """The policy for steps whose update `common.optim.update` skipped.

    Every rank writes the names of its batch into `<out>/not_finite/`. The run stops when more than `skip_limit` such
    steps follow one another.
    """

    def __init__(self, config: RunConfig, rank: int, name: Callable[[int], str]) -> None:
        """`name(index)` is the file, or the row of a store, of an item."""
        self.limit = config.skip_limit
        self.folder, self.rank, self.name = Path(config.out) / "not_finite", rank, name
        self.in_a_row = self.skipped = 0

    def fine(self) -> None:
        self.in_a_row = 0

    def state(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load(self, state: dict[str, int]) -> None:
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]

    def skip(self, step: int, logged: dict[str, Tensor], index: Tensor | None) -> str:
        """Write the items `index` (B,) of 0-based `step` to a file and count the step; returns the log message.

        Raises: UserError when the limit is exceeded.
        """
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step{step:07d}_rank{self.rank}.json"
        files = [] if index is None else [self.name(number) for number in index.tolist()]
        figures = {key: str(float(value)) for key, value in logged.items()}  # JSON has no NaN
        path.write_text(json.dumps({"step": step, "rank": self.rank, "files": files, "logged": figures}, indent=1))
        said = f"a loss or gradient was not finite in step {step}; its update was skipped, its batch is in {path}"
        if self.in_a_row > self.limit:
            raise UserError(
                f"{said}; lower optim.lr, set run.precision=none, or raise run.skip_limit (now {self.limit} in a row), "
                "then run the same command again"
            )
        return f"warning: {said}; skipped {self.skipped} in all"


@dataclass
class Alarm:
    """A condition on a logged metric; one warning each time it becomes true.

    The condition is |value| > `above`, value < `below`, or value < `fallen` * the largest value so far. `advice`
    explains it.
    """

    key: str
    advice: str
    above: float | None = None
    below: float | None = None
    fallen: float | None = None
    after: int = 0
    best: float = float("-inf")
    ringing: bool = False

    def look(self, step: int, averages: dict[str, float]) -> str | None:
        """The warning due for the averages logged after `step` steps, or None."""
        value = averages.get(self.key)
        if value is None or step < self.after:
            return None
        self.best = max(self.best, value)
        rang, self.ringing = self.ringing, (
            (self.above is not None and abs(value) > self.above)
            or (self.below is not None and value < self.below)
            or (self.fallen is not None and value < self.fallen * self.best)
        )
        if rang or not self.ringing:
            return None
        return f"warning: {self.key} is {value:.4g} at step {step}: {self.advice}"
