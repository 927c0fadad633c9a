"""Latent perturbation: the decoder learns to draw from codes that are slightly wrong, as a generator's are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from tokenizer.model import Pass
from tokenizer.quantizers.perturbation import NEIGHBOURS, Perturbation, anneal
from tokenizer.regularizers.base import Context, Plan, Regularizer

CHOSEN, UNIFORMS, RANKS = 3, 4, 5  # streams


class PerturbLatents(Regularizer):
    """Redraws codes of some images among their neighbours; the quantizer's own losses see the clean ones.

    An image is chosen with probability beta, a code of a chosen image redrawn with probability alpha, among the delta
    nearest. (RobusTok takes the first beta of each process's batch, which is none of a small batch.) What is drawn
    belongs to the seed, the step and the image's place in the global batch.
    Source: RobusTok (arXiv 2503.08354), section 3; spec robustok 2.
    """

    needs_latents = True

    @dataclass
    class Config:
        alpha: float = opt(1.0, "rate: chance that a code of a chosen image is redrawn")
        beta: float = opt(0.1, "proportion: chance that an image is chosen; not annealed")
        delta: int = opt(100, "strength: how many nearest codes it is redrawn from, its own included")
        anneal_start: int = opt(0, "step from which alpha and delta shrink")
        anneal_end: int = opt(0, "step from which both stay at end_ratio of their value")
        end_ratio: float = opt(1.0, "what is left of alpha and delta at the end; RobusTok: 0.5")
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

    def plan(self, plan: Plan) -> None:
        alpha, delta = self.now(plan.step)
        first, device = plan.rank * plan.batch_size, self.context.device
        shape = (first + plan.batch_size, self.context.num_codes)
        uniforms = torch.rand(shape, generator=plan.generator(UNIFORMS))[first:]
        ranks = torch.randint(delta, shape, generator=plan.generator(RANKS))[first:]
        chosen = torch.rand(shape[0], generator=plan.generator(CHOSEN))[first:] < self.config.beta
        plan.perturbation = Perturbation(
            chosen, alpha, delta, uniforms.to(device), ranks.to(device), self.config.neighbours
        )

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        assert plan.perturbation is not None
        moved = plan.perturbation
        return {"perturbed@images": moved.chosen.float().mean().to(images.device)} | {
            f"perturbed@{name}": torch.tensor(float(value), device=images.device)
            for name, value in (("alpha", moved.rate), ("delta", moved.strength))
        }
