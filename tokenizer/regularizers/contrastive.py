"""Contrastive guidance: an image's codes should say what a frozen teacher sees in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common import dist
from common.config import build, opt, part
from common.errors import UserError
from tokenizer.losses.feature import contrastive_loss
from tokenizer.model import Pass
from tokenizer.regularizers.base import Context, Plan, Regularizer


class Contrastive(Regularizer):
    """weight * symmetric cross-entropy between the teacher's features and the mean code vectors of a global batch.

    The features pass through the tokenizer's own `quant_conv`, as the latents do. RobusTok's semantic guidance is
    DINOv2's class feature against the last group of codes, its detail guidance CLIP's patch features against the first.
    Source: RobusTok and XQGAN (arXiv 2412.01762); spec robustok 1.7.
    """

    needs_latents = True

    @dataclass
    class Config:
        teacher: dict[str, Any] | None = part(
            "tokenizer.teachers:TEACHERS", "frozen network; null = model.teacher, which stays in the checkpoint"
        )
        weight: float = opt(0.1, "factor of the loss")
        scale: float = opt(1.0, "factor of the dot products, which are not normalised")
        feature: str = opt("class", "class (its token; the mean patch of a teacher without one) | patch (mean)")
        group: str = opt("last", "last | first: which group of a product quantizer's codes is guided")
        on: str = opt("clean", "clean (paper) | perturbed (RobusTok's code): the vectors before or after perturbation")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        for name, known in (("feature", "class patch"), ("group", "last first"), ("on", "clean perturbed")):
            if getattr(config, name) not in known.split():
                expected = known.replace(" ", " or ")
                raise UserError(f"contrastive.{name} got {getattr(config, name)!r}; expected {expected}")
        if not config.teacher and context.teacher is None:
            raise UserError("regularizers.contrastive has no teacher; set its teacher.name, or model.teacher.name")
        self.teacher = context.teacher
        if config.teacher:
            shape = {"grid": context.grid, "image_size": context.image_size}
            self.teacher = build("tokenizer.teachers:TEACHERS", config.teacher, **shape).to(context.device)
        self.key = f"contrastive_{config.group}"

    def plan(self, plan: Plan) -> None:
        plan.guides[self.key] = self.features

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the teacher sees: images (B,3,H,W) -> (B,z_channels)."""
        seen = self.teacher.summary(images) if self.config.feature == "class" else self.teacher(images).mean(dim=1)
        if seen.shape[1] != self.context.z_channels:
            raise UserError(
                f"the teacher of regularizers.contrastive has {seen.shape[1]} features, which quant_conv takes like "
                f"latents; set model.z_channels={seen.shape[1]} (it is {self.context.z_channels}) or another teacher"
            )
        return seen

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        guide = done.extra[self.key].float()
        vectors = done.quantized.vectors if self.config.on == "clean" else done.vectors
        width = guide.shape[1]
        vectors = vectors[:, :width] if self.config.group == "first" else vectors[:, -width:]
        rows = [dist.gather_rows(x) for x in (guide, vectors.float().mean(dim=(2, 3)))]
        if plan.kept_scales is not None:
            kept = dist.gather_rows(plan.kept_scales.float()[:, None])[:, 0]
            rows = [x[kept == kept.max()] for x in rows]
        return {self.key: self.config.weight * contrastive_loss(*rows, self.config.scale)}
