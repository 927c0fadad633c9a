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


class L1(ReconstructionLoss):
    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(recon, target)


class L2(ReconstructionLoss):
    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(recon, target)
