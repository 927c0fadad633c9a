"""The convolutional pixel decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from tokenizer.encoders.cnn import CnnConfig, middle
from tokenizer.layers.resnet import (
    AdaptiveGroupNorm,
    AttnBlock,
    ResBlock,
    UpsampleDepthToSpace,
    UpsampleNearest,
    depth_to_space,
    init_weights,
    norm,
)
from tokenizer.layout import Layout


@dataclass
class CnnDecoderConfig(CnnConfig):
    """The encoder's keys and two of GigaTok's changes, both off in LlamaGen."""

    adaptive_norm: bool = opt(True, "AdaptiveGroupNorm styled by the latent map before every level")
    depth_to_space: bool = opt(True, "upsample by depth-to-space instead of nearest neighbour")


class CnnDecoder(nn.Module):
    """map (B,z_channels,G,G) -> images (B,3,G*stride,G*stride)."""

    @dataclass
    class Config(CnnDecoderConfig):
        pass

    def __init__(self, config: CnnDecoderConfig, image_size: int, z_channels: int, layout: Layout | None = None):
        super().__init__()
        self.patch, self.stride = config.patch, config.stride
        widths = [config.channels * m for m in config.multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = middle(width, config)
        self.conv_blocks, self.adaptive = nn.ModuleList(), nn.ModuleList()
        upsample = UpsampleDepthToSpace if config.depth_to_space else UpsampleNearest
        for level, out in reversed(list(enumerate(widths))):
            if config.adaptive_norm:
                self.adaptive.append(AdaptiveGroupNorm(z_channels, width))
            block = nn.Module()
            block.res, block.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.blocks or 3):
                block.res.append(ResBlock(width, out, config.norm))
                width = out
                if level == len(widths) - 1 and config.attention:
                    block.attn.append(AttnBlock(width))
            if level > 0:
                block.upsample = upsample(width)
            self.conv_blocks.append(block)
        self.norm_out = norm(width, config.norm)
        self.conv_out = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)
        self.linear_path = nn.Conv2d(z_channels, 3 * self.stride**2, 1) if config.linear_path else None
        init_weights(self)

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
            for i, res in enumerate(block.res):
                h = res(h)
                if len(block.attn):
                    h = block.attn[i](h)
            if hasattr(block, "upsample"):
                h = block.upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        images = depth_to_space(h, self.patch) if self.patch > 1 else h
        return images if self.linear_path is None else images + depth_to_space(self.linear_path(latents), self.stride)
