"""Nested self-alignment: decoder features of a prefix are aligned with those of the longer view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from common.errors import UserError
from tokenizer.model import Pass
from tokenizer.regularizers.base import Plan, Regularizer


class SelfAlignment(Regularizer):
    """weight * (1 - mean_j cos(f_j(shorter view), sg f_j(longer view))), f = decoder stream after its first layer.

    f has one row per grid cell and one for the mean of the kept embedded tokens, without padding tokens.
    Source: NesTok (2026), self-alignment loss, for a Q-former decoder.
    """

    @dataclass
    class Config:
        weight: float = opt(1.0, "factor of the loss")

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        if len(plan.lengths) < 2:
            raise UserError("regularizers.self_alignment compares two lengths; add regularizers.cross_length")
        main, also = (view.features.first.float() for view in done.views[:2])
        kept, other = (plan.layout.num_tokens if length is None else length for length in plan.lengths[:2])
        if isinstance(kept, int) and isinstance(other, int):
            student, teacher = (also, main) if kept >= other else (main, also)
        else:  # one length per image, a tensor (B,)
            longer = (kept >= other).view(-1, 1, 1)
            student, teacher = torch.where(longer, also, main), torch.where(longer, main, also)
        teacher = teacher.detach()
        cosine = F.cosine_similarity(student, teacher, dim=-1)
        return {"self_alignment": self.config.weight * (1 - cosine.mean())}
