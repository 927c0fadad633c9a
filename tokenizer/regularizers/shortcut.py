"""Direct reconstruction: in the first steps the CNN decoder also decodes the CNN encoder's own map."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from tokenizer.model import Pass, Tokenizer, View
from tokenizer.regularizers.base import Plan, Regularizer


class Shortcut(Regularizer):
    """Trains CNN encoder and decoder without the quantizer between them, and the decoder's map towards the encoder's.

    Source: GigaTok's auxiliary losses (`aux_loss_end`, `use_direct_rec_loss`, `fea_rec_loss`).
    """

    needs_latents = True

    @dataclass
    class Config:
        until: int = opt(15000, "both losses act in the first `until` steps")
        direct: bool = opt(True, "also reconstruct from the encoder's map")
        feature_weight: float = opt(1.0, "weight of MSE(decoder map, encoder map without gradient)")

    def after_decode(self, tokenizer: Tokenizer, images: Tensor, done: Pass, plan: Plan) -> None:
        if self.config.direct and plan.step < self.config.until:
            done.views.append(View(tokenizer.decoder.cnn(done.spatial)))

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        if plan.step >= self.config.until or not self.config.feature_weight:
            return {}
        target = done.spatial.detach().float()
        return {"shortcut": self.config.feature_weight * F.mse_loss(done.views[0].features.spatial.float(), target)}
