"""What a run watches in its own figures: steps that are not finite, and values that drift where they should not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from common.errors import UserError
from common.options import RunConfig


class NotFinite:
    """The policy for steps whose update `common.optim.update` left out.

    Every rank writes what it was fed into `<out>/not_finite/`; then the run stops, or goes on for as long as no more
    than `skip_limit` such steps follow one another.
    """

    def __init__(self, config: RunConfig, rank: int, name: Callable[[int], str]) -> None:
        """`name(index)` says which file, or row of a store, an item was. Raises: UserError for an unknown policy."""
        if config.not_finite not in ("stop", "skip"):
            raise UserError(f"run.not_finite got {config.not_finite!r}; expected stop or skip")
        self.limit = config.skip_limit if config.not_finite == "skip" else 0
        self.folder, self.rank, self.name = Path(config.out) / "not_finite", rank, name
        self.in_a_row = self.skipped = 0

    def fine(self) -> None:
        self.in_a_row = 0

    def state(self) -> dict[str, int]:
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load(self, state: dict[str, int]) -> None:
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]

    def skip(self, step: int, logged: dict[str, Tensor], index: Tensor | None) -> str:
        """Dump what 0-based `step` was fed, the items `index` (B,), and count it; returns what to tell the log.

        Raises: UserError when the policy says stop.
        """
        self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step{step:07d}_rank{self.rank}.json"
        files = [] if index is None else [self.name(number) for number in index.tolist()]
        figures = {key: str(float(value)) for key, value in logged.items()}  # JSON has no NaN
        path.write_text(json.dumps({"step": step, "rank": self.rank, "files": files, "logged": figures}, indent=1))
        said = f"a loss or gradient was not finite in step {step}; its update was left out, its batch is in {path}"
        if self.in_a_row > self.limit:
            raise UserError(
                f"{said}; lower optim.lr, set run.precision=none, or pass over such steps with run.not_finite=skip "
                f"(run.skip_limit is {self.limit} in a row), then run the same command again"
            )
        return f"warning: {said}; skipped {self.skipped} in all"


@dataclass
class Alarm:
    """A logged figure that is worth a warning, said once each time it gets there.

    Beyond `above` in size, below `below`, or below `fallen` times the best it has been; `advice` says what it means.
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
        """The warning that the averages logged after `step` steps call for."""
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
