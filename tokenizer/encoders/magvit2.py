"""Open-MAGVIT2's convolutional encoder."""

from __future__ import annotations

from torch import nn

from tokenizer.encoders.cnn import CnnConfig, CnnEncoder
from tokenizer.layers.resnet import DownsampleCentred, ResBlock


class PlainMiddle:
    """For encoder and decoder: no attention, as many middle blocks as a level has, residual blocks without biases."""

    blocks_per_level, bias = 4, False

    def middle(self, width: int, config: CnnConfig, blocks: int) -> nn.ModuleList:
        return nn.ModuleList(ResBlock(width, width, bias=False) for _ in range(blocks))


class Magvit2Encoder(PlainMiddle, CnnEncoder):
    """images (B,3,H,W) -> map (B,z_channels,H/stride,W/stride). Source: Open-MAGVIT2 (arXiv 2409.04410)."""

    downsample, kernel_out = DownsampleCentred, 1
