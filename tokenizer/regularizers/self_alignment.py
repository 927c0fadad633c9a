"""Nested self-alignment: a prefix should lead the decoder to the features that all tokens lead it to."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from common.errors import UserError
from tokenizer.model import Pass
from tokenizer.regularizers.base import Plan, Regularizer


class SelfAlignment(Regularizer):
    """weight * (1 - mean_j cos(f_j(prefix), sg f_j(main view))), f = decoder stream after its first layer.

    f has one row per grid cell and one for the mean of the embedded tokens; the longer view is the teacher.
    Source: NesTok (2026), self-alignment loss, for a Q-former decoder.
    """

    @dataclass
    class Config:
        weight: float = opt(1.0, "factor of the loss")

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        if plan.also_num_tokens is None:
            raise UserError("regularizers.self_alignment compares two lengths; add regularizers.cross_length")
        teacher, student = (view.features.first.float() for view in done.views[:2])
        cosine = F.cosine_similarity(student, teacher.detach(), dim=-1)
        return {"self_alignment": self.config.weight * (1 - cosine.mean())}
