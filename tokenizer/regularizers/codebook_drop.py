"""Codebook drop: some images are trained with their coarse scales only, so that these decode on their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.config import opt
from common.errors import UserError
from common.numerics import to_device
from tokenizer.regularizers.base import Context, Plan, Regularizer

CHOSEN, SCALES = 6, 7  # streams


class CodebookDrop(Regularizer):
    """With probability `share` an image keeps only its first n of S scales, n uniform in {min_scales..S}.

    All groups of a product quantizer keep the same number; contrastive guidance leaves such images out.
    Source: ImageFolder (Li et al. 2024); XQGAN (arXiv 2412.01762).
    """

    needs_latents = True

    @dataclass
    class Config:
        share: float = opt(0.1, "probability that an image loses scales")
        min_scales: int = opt(3, "fewest scales kept")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        quantizer = context.quantizer
        quantizer = quantizer.parts[0] if hasattr(quantizer, "parts") else quantizer
        if not hasattr(quantizer, "scales"):
            raise UserError("codebook_drop drops scales of the quantizer; set model.quantizer.name=multi_scale")
        self.num_scales = len(quantizer.scales)
        if not 1 <= config.min_scales <= self.num_scales:
            raise UserError(f"codebook_drop.min_scales got {config.min_scales}; expected 1 to {self.num_scales}")

    def plan(self, plan: Plan) -> None:
        chosen = torch.rand(plan.mine.stop, generator=plan.generator(CHOSEN)) < self.config.share
        numbers = torch.randint(
            self.config.min_scales, self.num_scales + 1, chosen.shape, generator=plan.generator(SCALES)
        )
        kept = to_device(torch.where(chosen, numbers, self.num_scales)[plan.mine], self.context.device)
        plan.quantizer_options["kept_scales"] = kept
        plan.kept_codes = kept / self.num_scales
