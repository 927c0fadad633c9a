"""The embedded perceptual distance: LPIPS's recipe on EfficientNet-Lite0, without learned heads.

It is called what it is; its values do not compare with LPIPS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.networks.efficientnet_lite import EfficientNetLite

__all__ = ["PerceptualLite0"]

STRIDES = (2, 4, 8, 16)


class PerceptualLite0(nn.Module):
    """Mean over the maps at strides 2, 4, 8, 16 of the squared difference of unit-length channel vectors."""

    name = "perceptual_efficientnet_lite0"

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.network = EfficientNetLite("lite0")

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distance of each pair of images (B,3,H,W) in [-1,1]: (B,) in [0,4], 0 for equal images."""
        ours = self.network.feature_maps(images, STRIDES)
        theirs = self.network.feature_maps(references, STRIDES)
        return torch.stack(
            [(_unit(ours[s]) - _unit(theirs[s])).square().sum(dim=1).mean(dim=(1, 2)) for s in STRIDES]
        ).mean(dim=0)


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
