"""The convolutional pixel decoder of VQGAN, LlamaGen and GigaTok."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from tokenizer.encoders.cnn import CnnConfig, conv_level, middle, run_level
from tokenizer.layers.resnet import (
    AdaptiveGroupNorm,
    GroupNorm,
    ResBlock,
    UpsampleDepthToSpace,
    UpsampleNearest,
    depth_to_space,
    init_weights,
)
from tokenizer.layout import Layout


@dataclass
class CnnDecoderConfig(CnnConfig):
    """The encoder's options and GigaTok's two changes of the decoder, both off in LlamaGen."""

    adaptive_norm: bool = opt(True, "AdaptiveGroupNorm styled by the latent map before every level")
    depth_to_space: bool = opt(True, "upsample by depth-to-space instead of nearest neighbour")


class CnnDecoder(nn.Module):
    """map (B,z_channels,G,G) -> images (B,3,G*stride,G*stride)."""

    Config = CnnDecoderConfig
    tokens_1d, any_size, groups = False, True, 1
    blocks_per_level = 3
    norm: Callable[[int], nn.Module] = GroupNorm
    res_block: type[ResBlock] = ResBlock
    bias = True
    """Of the residual blocks."""

    def __init__(self, config: CnnDecoderConfig, image_size: int, z_channels: int, layout: Layout | None = None):
        super().__init__()
        self.patch, blocks = config.patch, config.blocks or self.blocks_per_level
        widths = [config.channels * m for m in config.multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = self.middle(width, config, blocks)
        self.conv_blocks, self.adaptive = nn.ModuleList(), nn.ModuleList()
        block = partial(self.res_block, norm=self.norm, bias=self.bias)
        upsample = UpsampleDepthToSpace if config.depth_to_space else UpsampleNearest
        for level, out in reversed(list(enumerate(widths))):
            if config.adaptive_norm:
                self.adaptive.append(AdaptiveGroupNorm(z_channels, width))
            attention = config.attention and level == len(widths) - 1
            self.conv_blocks.append(conv_level(width, out, blocks, attention, block))
            width = out
            if level > 0:
                self.conv_blocks[-1].upsample = upsample(width)
        self.norm_out = self.norm(width)
        self.conv_out = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)
        init_weights(self)

    def middle(self, width: int, config: CnnDecoderConfig, blocks: int) -> nn.ModuleList:
        return middle(width, config.attention, self.norm)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight whose gradients balance the adversarial loss."""
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        h = self.conv_in(latents)
        for layer in self.mid:
            h = layer(h)
        for level, block in enumerate(self.conv_blocks):
            if len(self.adaptive):
                h = self.adaptive[level](h, latents)
            h = run_level(block, h)
            if hasattr(block, "upsample"):
                h = block.upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return depth_to_space(h, self.patch) if self.patch > 1 else h
