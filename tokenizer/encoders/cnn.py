"""The convolutional pixel encoder of VQGAN, LlamaGen and GigaTok."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from tokenizer.layers.resnet import AttnBlock, Downsample, GroupNorm, ResBlock, init_weights, space_to_depth
from tokenizer.layout import Layout


@dataclass
class CnnConfig:
    """Options that encoder and decoder share."""

    channels: int = opt(128, "base width")
    multipliers: list[int] = opt([1, 1, 2, 2, 4], "width of each level over the base; each level halves the resolution")
    attention: bool = opt(False, "self-attention at the coarsest level (LlamaGen: true)")
    patch: int = opt(1, "pixels per side folded into channels first; 1 in every released model, more is cheaper", low=1)
    blocks: int | None = opt(None, "residual blocks per level; null = 2 (encoder) or 3 (decoder), as released", low=1)

    @property
    def stride(self) -> int:
        """Pixels per side of one latent position."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class CnnEncoder(nn.Module):
    """images (B,3,H,W) -> map (B,z_channels,H/stride,W/stride)."""

    Config = CnnConfig
    tokens_1d, any_size, groups = False, True, 1
    blocks_per_level = 2
    norm: Callable[[int], nn.Module] = GroupNorm
    res_block: type[ResBlock] = ResBlock
    downsample: Callable[[int], nn.Module] = Downsample
    bias, kernel_out = True, 3
    """bias: of `conv_in` and of the residual blocks."""

    def __init__(self, config: CnnConfig, image_size: int, z_channels: int, layout: Layout | None = None):
        super().__init__()
        self.grid, self.patch = image_size // config.stride, config.patch
        if image_size % config.stride:
            raise UserError(f"image_size={image_size}; this tokenizer takes multiples of {config.stride} pixels")
        width, blocks = config.channels, config.blocks or self.blocks_per_level
        self.conv_in = nn.Conv2d(3 * config.patch**2, width, 3, padding=1, bias=self.bias)
        self.conv_blocks, block = nn.ModuleList(), partial(self.res_block, norm=self.norm, bias=self.bias)
        for level, multiplier in enumerate(config.multipliers, start=1):
            last = level == len(config.multipliers)
            out = config.channels * multiplier
            self.conv_blocks.append(conv_level(width, out, blocks, config.attention and last, block))
            width = out
            if not last:
                self.conv_blocks[-1].downsample = self.downsample(width)
        self.mid = self.middle(width, config, blocks)
        self.norm_out = self.norm(width)
        self.conv_out = nn.Conv2d(width, z_channels, self.kernel_out, padding=self.kernel_out // 2)
        init_weights(self)

    def middle(self, width: int, config: CnnConfig, blocks: int) -> nn.ModuleList:
        return middle(width, config.attention, self.norm)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(space_to_depth(images, self.patch) if self.patch > 1 else images)
        for block in self.conv_blocks:
            h = run_level(block, h)
            if hasattr(block, "downsample"):
                h = block.downsample(h)
        for layer in self.mid:
            h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def conv_level(
    width: int, out: int, blocks: int, attention: bool, block: Callable[[int, int], nn.Module] = ResBlock
) -> nn.Module:
    """The residual blocks of one resolution, each followed by self-attention if `attention`."""
    level = nn.Module()
    level.res, level.attn = nn.ModuleList(), nn.ModuleList()
    for _ in range(blocks):
        level.res.append(block(width, out))
        width = out
        if attention:
            level.attn.append(AttnBlock(width))
    return level


def run_level(level: nn.Module, h: Tensor) -> Tensor:
    for i, res in enumerate(level.res):
        h = res(h)
        if len(level.attn):
            h = level.attn[i](h)
    return h


def middle(width: int, attention: bool, norm: Callable[[int], nn.Module]) -> nn.ModuleList:
    """Two further residual blocks at the coarsest resolution, with self-attention between them if `attention`."""
    first, last = (ResBlock(width, width, norm) for _ in range(2))
    return nn.ModuleList([first, AttnBlock(width), last] if attention else [first, last])
