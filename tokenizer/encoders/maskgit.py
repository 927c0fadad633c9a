"""The encoder of MaskGIT's VQGAN."""

from __future__ import annotations

from torch import Tensor, nn

from tokenizer.encoders.cnn import CnnConfig, CnnEncoder
from tokenizer.layers.resnet import HiddenShortcutBlock


class MaskgitBlocks:
    """For encoder and decoder: two residual blocks per level and in the middle, without biases."""

    res_block, blocks_per_level, bias = HiddenShortcutBlock, 2, False

    def middle(self, width: int, config: CnnConfig, blocks: int) -> nn.ModuleList:
        return nn.ModuleList(HiddenShortcutBlock(width, width, bias=False) for _ in range(blocks))


class MaskgitEncoder(MaskgitBlocks, CnnEncoder):
    """images (B,3,H,W) in [-1,1] -> map (B,z_channels,H/stride,W/stride).

    Source: MaskGIT (arXiv 2202.04200) as converted in 1d-tokenizer.
    """

    kernel_out = 1

    def downsample(self, width: int) -> nn.Module:
        return nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images + 1) / 2)  # the weights expect [0,1]
