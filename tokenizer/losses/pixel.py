"""Pixel losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.numerics import autocast


@dataclass
class WeightConfig:
    weight: float = opt(1.0, "factor in the total loss")


class ReconstructionLoss(nn.Module):
    """`loss(recon, loss.target(images))` is the weighted scalar; targets are computed once for all views of a step.

    `features` runs under the caller's autocast, `distance` in fp32. Networks are frozen and stay in evaluation mode.
    """

    Config = WeightConfig

    def __init__(self, config: Any):
        super().__init__()
        self.weight = config.weight

    def train(self, mode: bool = True) -> ReconstructionLoss:
        return super().train(False)

    def features(self, images: Tensor) -> Any:
        """What is compared, of images (B,3,H,W) in [-1,1]."""
        return images

    @torch.no_grad()
    def target(self, images: Tensor) -> Any:
        return self.features(images)

    def distance(self, features: Any, target: Any) -> Tensor:
        """Scalar distance of what `features` returned for reconstructions and for images."""
        raise TypeError(f"{type(self).__name__} defines no distance")

    def forward(self, recon: Tensor, target: Any) -> Tensor:
        features = self.features(recon)
        with autocast("none", recon.device):
            return self.weight * self.distance(features, target)


class L1(ReconstructionLoss):
    def distance(self, features: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(features, target)


class L2(ReconstructionLoss):
    def distance(self, features: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(features, target)
