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

    Alone it adds a view of r tokens, r uniform, to the main view of all N. Where nested dropout has made the main view
    a random prefix already (of the extended sequence, perhaps), it adds the view of all N.
    Every position then gets a gradient at every step, and the tail can only help by adding what the prefix lacks.
    Source: NesTok (2026), cross-length training.
    """

    order = 1  # after nested dropout

    @dataclass
    class Config:
        min_tokens: int = opt(1, "smallest r; the largest is N. Not used beside nested dropout")

    def plan(self, plan: Plan) -> None:
        most = plan.layout.num_tokens
        if plan.num_tokens is not None:
            plan.also_num_tokens = most
            return
        if not 1 <= self.config.min_tokens <= most:
            raise UserError(f"cross_length.min_tokens got {self.config.min_tokens}; expected 1..{most}")
        drawn = torch.randint(self.config.min_tokens, most + 1, (1,), generator=plan.generator(STREAM))
        plan.also_num_tokens = int(drawn)
