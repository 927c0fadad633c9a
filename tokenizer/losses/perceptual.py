"""Perceptual losses: distances in the features of a frozen network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from evaluations.metrics.embedded import EfficientNetLite
from evaluations.metrics.lpips import LPIPS
from tokenizer.losses.pixel import ReconstructionLoss, WeightConfig


class LpipsLoss(ReconstructionLoss):
    """LPIPS-VGG (Zhang et al. 2018), mean over the batch."""

    @dataclass
    class Config(WeightConfig):
        vgg_path: str | None = opt(None, "torchvision's vgg16-397923af.pth; null = torch's hub cache")

    def __init__(self, config: Config):
        super().__init__(config)
        self.net = LPIPS(LPIPS.Config(vgg_path=config.vgg_path))

    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return self.net(recon, target).mean()


class EfficientNetPerceptual(ReconstructionLoss):
    """LPIPS's recipe without learned heads on EfficientNet-Lite0: the embedded stand-in."""

    @dataclass
    class Config(WeightConfig):
        strides: list[int] = opt([2, 4, 8], "maps compared; fewer and smaller are cheaper")

    def __init__(self, config: Config):
        super().__init__(config)
        self.strides = config.strides
        self.net = EfficientNetLite("lite0")

    def _features(self, images: Tensor) -> list[Tensor]:
        maps = self.net.feature_maps(images, self.strides)
        return [F.normalize(maps[stride], dim=1) for stride in self.strides]

    @torch.no_grad()
    def target(self, images: Tensor) -> list[Tensor]:
        return self._features(images)

    def distance(self, recon: Tensor, target: list[Tensor]) -> Tensor:
        pairs = zip(self._features(recon), target, strict=True)
        return sum((a - b).float().square().sum(dim=1).mean() for a, b in pairs) / len(self.strides)
