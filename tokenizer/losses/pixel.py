"""Pixel losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt


@dataclass
class WeightConfig:
    weight: float = opt(1.0, "factor in the total loss")


class ReconstructionLoss(nn.Module):
    """`loss(recon, loss.target(images))` is the weighted scalar; targets are computed once for all views of a step.

    A network inside is frozen and stays in evaluation mode, whatever the module around it is told.
    """

    Config = WeightConfig

    def __init__(self, config: Any):
        super().__init__()
        self.weight = config.weight

    def train(self, mode: bool = True) -> ReconstructionLoss:
        return super().train(False)

    @torch.no_grad()
    def target(self, images: Tensor) -> Any:
        return images

    def distance(self, recon: Tensor, target: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no distance")

    def forward(self, recon: Tensor, target: Any) -> Tensor:
        return self.weight * self.distance(recon, target)

    def terms(self, recon: Tensor, target: Any, whole: bool) -> dict[str, Tensor]:
        """Weighted scalars by what to add to the loss's name.

        whole: `recon` was decoded from all of its tokens, and stands for what the tokenizer is to decode.
        """
        return {"": self(recon, target)}

    def unpaired_terms(self, images: Tensor, target: Any) -> dict[str, Tensor]:
        """As `terms`, for `images` that are to look like the targets', each like none of them in particular."""
        return {}

    def state(self) -> dict[str, Any]:
        """What it has gathered in training so far."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


class L1(ReconstructionLoss):
    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(recon, target)


class L2(ReconstructionLoss):
    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(recon, target)
