"""Semantic regularization: decoder features are aligned with a frozen teacher's patch features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.config import build, opt, part
from common.errors import UserError
from tokenizer.losses.feature import mean_cosine
from tokenizer.model import Pass, Tokenizer
from tokenizer.regularizers.base import Context, Plan, Regularizer


class Semantic(Regularizer):
    """Minus the mean cosine similarity to the teacher, weighted by lambda(k), k the number of kept tokens.

    `schedule: constant` is GigaTok's term; the falling schedules are ReTok's hierarchical semantic regularization,
    which is strongest for few tokens.
    """

    needs_head = True

    @dataclass
    class Config:
        teacher: dict[str, Any] = part("tokenizer.teachers:TEACHERS", "frozen network", {"name": "dinov2_vitb14"})
        weight: float = opt(0.5, "lambda at k_start")
        schedule: str = opt("constant", "constant | linear | cosine | step: how lambda falls from k_start to k_end")
        end_weight: float = opt(0.0, "lambda at k_end and beyond")
        k_start: int = opt(1, "kept tokens up to which lambda = weight")
        k_end: int | None = opt(None, "kept tokens from which lambda = end_weight; null = N+M")

    def __init__(self, config: Config, context: Context):
        super().__init__(config, context)
        if config.schedule not in ("constant", "linear", "cosine", "step"):
            raise UserError(f"semantic.schedule got {config.schedule!r}; expected constant, linear, cosine or step")
        teacher = build("tokenizer.teachers:TEACHERS", config.teacher, grid=context.grid, image_size=context.image_size)
        self.teacher = teacher.to(context.device)

    def strength(self, num_tokens: Tensor, extended: int) -> Tensor:
        """lambda(k) for int64 k of any shape."""
        config = self.config
        end = config.k_end or extended
        t = ((num_tokens - config.k_start).float() / max(1, end - config.k_start)).clamp(0, 1)
        fall = {
            "constant": torch.zeros_like(t),
            "linear": t,
            "cosine": 0.5 * (1 - torch.cos(math.pi * t)),
            "step": (t >= 1).float(),
        }[config.schedule]
        return config.weight + (config.end_weight - config.weight) * fall

    def after_decode(self, tokenizer: Tokenizer, images: Tensor, done: Pass, plan: Plan) -> None:
        with torch.no_grad():
            done.extra["semantic_target"] = self.teacher(images)
        done.extra["semantic"] = tokenizer.semantic_head(done.views[0].features.inner)

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        student, target = done.extra["semantic"].float(), done.extra["semantic_target"].float()
        if student.shape != target.shape:
            raise UserError(
                f"decoder.semantic_head gives {tuple(student.shape[1:])} features, the teacher "
                f"{self.config.teacher['name']!r} {tuple(target.shape[1:])}; "
                f"set decoder.semantic_head.width={target.shape[-1]}"
            )
        cosine = mean_cosine(student, target)
        length = plan.layout.num_tokens if plan.lengths[0] is None else plan.lengths[0]
        if isinstance(length, int):
            kept = torch.full((len(cosine),), length, device=cosine.device)
        else:
            kept = length
        losses = {"semantic": -(self.strength(kept, plan.layout.extended) * cosine).mean()}
        if isinstance(plan.lengths[0], int):
            quarter = min(3, 4 * length // plan.layout.extended)
            losses[f"semantic@k_quarter{quarter + 1}"] = losses["semantic"].detach()
            losses[f"cosine@k_quarter{quarter + 1}"] = cosine.detach().mean()
        return losses
