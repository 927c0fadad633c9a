"""Classifier-free guidance: how strongly each code is pushed towards its class, and the push itself.

Every schedule is a function of the ratio r = i / (N - 1) of the code's place i = 1..N-1 in the sequence. Code 0
always gets the plain scale. (RAR's "power_cosine" is one of i / N, code 0 included.) Where a schedule is "off" the
published results used 1.0001 instead of 1, because their sampler would otherwise have dropped the unconditional half of
its batch for good. We keep that number so that samples agree; with `off` = 1 our sampler leaves that half out there and
makes it up in one pass when guidance sets in.
Source: guidance: arXiv 2207.12598; schedules: GigaTok (arXiv 2504.08736); step from 0.18 on gave the published FIDs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config import opt
from common.errors import UserError

if TYPE_CHECKING:  # The jobs' schemas import this file, and --help must not wait for torch.
    from torch import Tensor

__all__ = ["OFF", "SCHEDULES", "Guidance", "guide"]

OFF = 1.0001


@dataclass
class Guidance:
    """How to guide. `scale` 1 means no guidance at all, whatever the schedule."""

    scale: float = opt(1.0, "guidance scale; 1 = none")
    schedule: str = opt(
        "constant", "constant, linear, linear_re, triangular, rectangular, step, cosine, sigmoid or power_cosine"
    )
    window_start: float = opt(0.18, "step, rectangular: guide from this fraction of the sequence on")
    window_end: float = opt(1.0, "rectangular: guide up to this fraction")
    off: float = opt(OFF, "step, rectangular: the scale elsewhere; the papers' 1.0001, or 1 = none, which is faster")
    power: float = opt(1.0, "power_cosine: the larger, the later guidance sets in; 0 = constant")
    interval: int = opt(-1, "guide only the first interval + 2 codes; -1 = all")

    def scales(self, num_tokens: int) -> list[float]:
        """The scale of each of `num_tokens` codes; exactly 1.0 means the conditional logits are used as they are.

        Raises: UserError for an unknown schedule or a scale below 1.
        """
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"unknown guidance schedule {self.schedule!r}; known: {known} (--cfg-schedule)")
        if self.scale < 1.0:
            raise UserError(f"the guidance scale is {self.scale}; expected 1 (none) or more (--cfg-scale)")
        if self.scale == 1.0:
            return [1.0] * num_tokens
        if self.schedule == "power_cosine":
            values = [_power_cosine(place / num_tokens, self) for place in range(num_tokens)]
        else:
            values = [self.scale, *self._later(num_tokens)][:num_tokens]
        if self.interval > -1:
            values[self.interval + 2 :] = [1.0] * len(values[self.interval + 2 :])
        return values

    def _later(self, num_tokens: int) -> list[float]:
        return [SCHEDULES[self.schedule](place / (num_tokens - 1), self) for place in range(1, num_tokens)]


def _linear(ratio: float, guidance: Guidance) -> float:
    return OFF + (guidance.scale - 1) * ratio


def _linear_reversed(ratio: float, guidance: Guidance) -> float:
    return OFF + (guidance.scale - 1) * (1 - ratio)


def _triangular(ratio: float, guidance: Guidance) -> float:
    return OFF + (guidance.scale - 1) * (1 - abs(2 * ratio - 1))


def _rectangular(ratio: float, guidance: Guidance) -> float:
    return guidance.scale if guidance.window_start <= ratio <= guidance.window_end else guidance.off


def _step(ratio: float, guidance: Guidance) -> float:
    return guidance.scale if guidance.window_start <= ratio else guidance.off


def _cosine(ratio: float, guidance: Guidance) -> float:
    return 1 + (guidance.scale - 1) * 0.5 * (1 + math.cos(math.pi * ratio))


def _sigmoid(ratio: float, guidance: Guidance) -> float:
    """Ours: the papers' code names this schedule but has no formula for it. Rises smoothly, half way at ratio 0.5."""
    return 1 + (guidance.scale - 1) / (1 + math.exp(-10 * (ratio - 0.5)))


def _power_cosine(ratio: float, guidance: Guidance) -> float:
    """RAR's: rises from 1 to the scale along a cosine of ratio^power."""
    return 1 + (guidance.scale - 1) * 0.5 * (1 - math.cos(math.pi * ratio**guidance.power))


SCHEDULES: dict[str, Callable[[float, Guidance], float]] = {
    "constant": lambda ratio, guidance: guidance.scale,
    "linear": _linear,
    "linear_re": _linear_reversed,
    "triangular": _triangular,
    "rectangular": _rectangular,
    "step": _step,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "power_cosine": _power_cosine,
}


def guide(logits: Tensor, scale: float) -> Tensor:
    """Combine logits (2B, K), conditional rows first, into (B, K): unconditional + scale * difference."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)
