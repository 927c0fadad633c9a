"""Contrastive guidance: code vectors are aligned with the features of a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common import dist
from common.config import build, opt, part
from common.errors import UserError
from tokenizer.losses.feature import contrastive_loss
from tokenizer.model import Pass, Tokenizer
from tokenizer.regularizers.base import Context, Plan, Regularizer


class Contrastive(Regularizer):
    """weight * symmetric cross-entropy between the teacher's features and the mean code vectors of a batch.

    The batch is that of all ranks; with run.accumulate it is one micro-batch of each. The features pass through the
    tokenizer's own `quant_conv`, as the latents do. RobusTok's semantic guidance compares DINOv2's class feature with
    the last group of codes, its detail guidance CLIP's patch features with the first.
    Source: RobusTok (arXiv 2503.08354); XQGAN (arXiv 2412.01762).
    """

    needs_latents = True

    @dataclass
    class Config:
        teacher: dict[str, Any] | None = part(
            "tokenizer.teachers:TEACHERS", "frozen network; null = model.teacher, which stays in the checkpoint"
        )
        weight: float = opt(0.1, "factor of the loss")
        scale: float = opt(1.0, "factor of the dot products, which are not normalised")
        feature: str = opt("class", "class (class token, or mean of the patches if there is none) | patch (mean)")
        group: str = opt("last", "last | first: the group of a product quantizer's codes that is guided")
        on: str = opt("clean", "clean (paper) | perturbed (RobusTok's code): the vectors before or after perturbation")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        for name, known in (("feature", "class patch"), ("group", "last first"), ("on", "clean perturbed")):
            if getattr(config, name) not in known.split():
                expected = known.replace(" ", " or ")
                raise UserError(f"contrastive.{name} got {getattr(config, name)!r}; expected {expected}")
        if not config.teacher and context.teacher is None:
            raise UserError("regularizers.contrastive has no teacher; set its teacher.name, or model.teacher.name")
        self.own = None
        if config.teacher:
            shape = {"grid": context.grid, "image_size": context.image_size}
            self.own = build("tokenizer.teachers:TEACHERS", config.teacher, **shape).to(context.device)
        self.key = f"contrastive_{config.group}"

    @property
    def teacher(self) -> nn.Module:
        return self.own or self.context.teacher

    def after_decode(self, tokenizer: Tokenizer, images: Tensor, done: Pass, plan: Plan) -> None:
        done.extra[self.key] = tokenizer.quant_conv(self.features(images)[..., None, None]).flatten(1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The teacher's features of images (B,3,H,W): (B,z_channels)."""
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
        counted = None
        if plan.kept_codes is not None:
            kept = dist.gather_rows(plan.kept_codes[:, None])[:, 0]
            counted = kept == kept.max()
        return {self.key: self.config.weight * contrastive_loss(*rows, self.config.scale, counted)}
