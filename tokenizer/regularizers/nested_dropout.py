"""Nested dropout: each step decodes a random prefix of the tokens, which orders them from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import to_device
from tokenizer.regularizers.base import Context, Plan, Regularizer

LENGTHS, FULL = 1, 8  # streams


class NestedDropout(Regularizer):
    """Draws the number of kept tokens k of the main view.

    Source: Rippel et al. 2014; ReTok draws over the extended sequence, k <= N+M.
    """

    trains_prefixes = saves_compute = True

    @dataclass
    class Config:
        min_tokens: int = opt(32, "smallest k")
        max_tokens: int | None = opt(None, "largest k; null = N+M")
        distribution: str = opt("uniform", "uniform | power2 (powers of two in the range, and the largest k)")
        multiple_of: int = opt(1, "draw k among the multiples of this (fewer shapes to compile for) and the largest k")
        per_sample: bool = opt(False, "one k per image instead of one per step")
        full_probability: float = opt(0.0, "probability of k = N instead")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        if config.distribution not in ("uniform", "power2"):
            raise UserError(f"nested_dropout.distribution got {config.distribution!r}; expected uniform or power2")

    def draw(self, count: int, plan: Plan) -> Tensor:
        """`count` values of k, int64, the same on every rank."""
        config = self.config
        largest = config.max_tokens or plan.layout.extended
        if not 1 <= config.min_tokens <= largest <= plan.layout.extended:
            raise UserError(
                f"nested_dropout got min_tokens={config.min_tokens}, max_tokens={largest}; "
                f"expected 1 <= min_tokens <= max_tokens <= {plan.layout.extended}"
            )
        choices = [*range(config.min_tokens, largest + 1)]
        if config.distribution == "power2":
            choices = [k for k in choices if k.bit_count() == 1 or k == largest]
        step = config.multiple_of
        choices = sorted({min(-(-k // step) * step, largest) for k in choices})
        lengths = torch.tensor(choices)[torch.randint(len(choices), (count,), generator=plan.generator(LENGTHS))]
        full = torch.rand(count, generator=plan.generator(FULL)) < config.full_probability
        return torch.where(full, plan.layout.num_tokens, lengths)

    def plan(self, plan: Plan) -> None:
        if self.config.per_sample:
            plan.lengths[0] = to_device(self.draw(plan.mine.stop, plan)[plan.mine], self.context.device)
        else:
            plan.lengths[0] = int(self.draw(1, plan))
