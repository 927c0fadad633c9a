"""What the training loop drives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from common.guard import Alarm


class Trainee(Protocol):
    """What the loop drives. Every rank calls every method at the same time, so all of them may communicate."""

    alarms: Sequence[Alarm]

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Forward, backward, update for 0-based `step`; scalars to log (device tensors, not synchronised).

        A key may be missing from some steps; it is averaged over those that have it. `not_finite` must be there: what
        `common.optim.update` returned, 1.0 where the update was left out.
        """

    def network(self) -> nn.Module:
        """What is sharded, for estimates."""

    def frozen(self) -> list[nn.Module]:
        """Networks beside it that are only looked through, for estimates."""

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by file name, e.g. {"model": ..., "ema": ...}."""

    def state(self) -> dict[str, Any]:
        """Optimizers and counters: tensors and plain containers."""

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Inverse of the two above; `weights(name)` reads one file."""

    def validate(self) -> dict[str, float]:
        """Scalars on held-out data."""
