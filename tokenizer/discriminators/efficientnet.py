"""Small convolutional heads on the features of EfficientNet-Lite0: the embedded stand-in for the DINO discriminator.

Source: the idea of Projected GANs (Sauer et al. 2021), which judge features of such a network at several resolutions,
without their random mixing of features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from common.config import opt
from common.networks.efficientnet_lite import EfficientNetLite
from tokenizer.discriminators.frozen import OnFrozen


class EfficientNetDiscriminator(OnFrozen[EfficientNetLite]):
    """images (B,3,H,W) in [-1,1] -> logits (B,S,h,w) of S strides; coarse maps are repeated to equal weight."""

    @dataclass
    class Config:
        strides: list[int] = opt([4, 8, 16, 32], "maps that get a head")
        width: int = opt(64, "channels of the heads")
        size: int | None = opt(None, "side that images are resized to first, pixels; null = as they are")

    def __init__(self, config: Config):
        super().__init__(EfficientNetLite("lite0", config.size))
        self.strides = config.strides
        self.heads = nn.ModuleList(_head(self.backbone.channels[stride], config.width) for stride in config.strides)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone.feature_maps(images, self.strides)
        logits = [head(maps[stride]) for stride, head in zip(self.strides, self.heads, strict=True)]
        places = maps[min(self.strides)].shape[-2:]
        return torch.cat([F.interpolate(each, places) for each in logits], dim=1)


def _head(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, width, 1)), nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 1, 1)),
    )  # fmt: skip
