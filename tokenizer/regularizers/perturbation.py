"""Latent perturbation: the decoder is trained on slightly wrong codes, like those of a generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import to_device
from tokenizer.model import Pass, Tokenizer
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.perturbation import NEIGHBOURS, Perturbation, anneal
from tokenizer.regularizers.base import Context, Plan, Regularizer

CHOSEN, UNIFORMS, RANKS = 3, 4, 5  # streams


class PerturbLatents(Regularizer):
    """Replaces codes of some images by near ones; the quantizer's own losses use the clean ones.

    An image is chosen with probability beta; each code of a chosen image is redrawn with probability alpha among the
    delta nearest. (RobusTok takes the first beta of each process's batch, which is none of a small batch.) The draws
    depend on the seed, the step and the image's place in the global batch.
    Source: RobusTok (arXiv 2503.08354), section 3.
    """

    needs_latents = True

    @dataclass
    class Config:
        alpha: float = opt(1.0, "rate: probability that a code of a chosen image is redrawn")
        beta: float = opt(0.1, "proportion: probability that an image is chosen; not annealed")
        delta: int = opt(100, "strength: number of nearest codes to draw from, including its own")
        anneal_start: int = opt(0, "step from which alpha and delta shrink")
        anneal_end: int = opt(0, "step from which both are end_ratio times their value")
        end_ratio: float = opt(1.0, "factor of alpha and delta at the end; RobusTok: 0.5")
        neighbours: str = opt("latent", "nearest to the latent (RobusTok's code) | to its code (RobusTok's paper)")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        for name in ("alpha", "beta", "end_ratio"):
            if not 0 <= getattr(config, name) <= 1:
                raise UserError(f"perturbation.{name} got {getattr(config, name)}; expected 0 to 1")
        if not hasattr(context.quantizer, "perturb"):
            raise UserError("perturbation redraws codes of a learned codebook; set model.quantizer.name=vq")
        most = context.quantizer.codebook_size
        if not 1 <= config.delta <= most:
            raise UserError(f"perturbation.delta got {config.delta}; expected 1 to codebook_size={most}")
        if config.anneal_end < config.anneal_start:
            raise UserError(
                f"perturbation.anneal_end={config.anneal_end} lies before anneal_start={config.anneal_start}"
            )
        if config.neighbours not in NEIGHBOURS:
            raise UserError(f"perturbation.neighbours got {config.neighbours!r}; expected {' or '.join(NEIGHBOURS)}")

    def now(self, step: int) -> tuple[float, int]:
        """(alpha, delta) of a step."""
        config = self.config
        ratio = anneal(step, config.anneal_start, config.anneal_end, config.end_ratio)
        return ratio * config.alpha, max(1, int(ratio * config.delta))

    def draw(self, plan: Plan) -> Perturbation:
        """The draws of one micro-batch."""
        alpha, delta = self.now(plan.step)
        shape, device = (plan.mine.stop, self.context.num_codes), self.context.device
        uniforms = torch.rand(shape, generator=plan.generator(UNIFORMS))[plan.mine]
        ranks = torch.randint(delta, shape, generator=plan.generator(RANKS))[plan.mine]
        chosen = torch.rand(shape[0], generator=plan.generator(CHOSEN))[plan.mine] < self.config.beta
        drawn = (to_device(uniforms, device), to_device(ranks, device))
        return Perturbation(chosen, alpha, delta, *drawn, self.config.neighbours)

    def vectors(
        self, tokenizer: Tokenizer, latents: Tensor | None, quantized: Quantized, vectors: Tensor, plan: Plan
    ) -> Tensor:
        if plan.kept_codes is not None:
            raise UserError("perturbation needs all codes of an image, but codebook_drop drops some; set one to null")
        self.drawn = self.draw(plan)
        return tokenizer.quantizer.perturb(latents, quantized, self.drawn)

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        return {"perturbed@images": to_device(self.drawn.chosen.float().mean(), images.device)} | {
            f"perturbed@{name}": torch.full((), float(value), device=images.device)
            for name, value in (("alpha", self.drawn.rate), ("delta", self.drawn.strength))
        }
