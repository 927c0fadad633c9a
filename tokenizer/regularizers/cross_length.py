"""Cross-length training: every step decodes the full sequence and a random prefix of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.config import opt
from common.errors import UserError
from tokenizer.regularizers.base import Plan, Regularizer

STREAM = 2


class CrossLength(Regularizer):
    """Adds a second view; the reconstruction losses of both views add up.

    If the main view has all N tokens, the second has r tokens, r uniform. If the main view is a random prefix already
    (nested dropout), the second has all N tokens. Every position then gets a gradient in every step.
    Source: NesTok (2026), cross-length training.
    """

    order = 1  # after the regularizers that shorten the main view
    trains_prefixes = True

    @dataclass
    class Config:
        min_tokens: int = opt(1, "smallest r; the largest is N. Not used with nested dropout")

    def plan(self, plan: Plan) -> None:
        most = plan.layout.num_tokens
        if plan.lengths[0] is not None:
            plan.lengths.append(most)
            return
        if not 1 <= self.config.min_tokens <= most:
            raise UserError(f"cross_length.min_tokens got {self.config.min_tokens}; expected 1..{most}")
        drawn = torch.randint(self.config.min_tokens, most + 1, (1,), generator=plan.generator(STREAM))
        plan.lengths.append(int(drawn))
