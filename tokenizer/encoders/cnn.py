"""The convolutional pixel encoder (VQGAN lineage)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from tokenizer.layers.resnet import AttnBlock, Downsample, ResBlock, init_weights, norm, space_to_depth
from tokenizer.layout import Layout


@dataclass
class CnnConfig:
    """Both directions share these keys."""

    channels: int = opt(128, "base width")
    multipliers: list[int] = opt(
        [1, 1, 2, 2, 4], "width of each level over the base; one halving between levels"
    )
    attention: bool = opt(False, "self-attention at the coarsest level (LlamaGen: true)")
    patch: int = opt(1, "pixels per side folded into the channels first; 1 in every released model, more is cheaper")
    norm: str = opt("group", "group (as released) | none (learns absolute brightness sooner; for tiny models)")
    linear_path: bool = opt(
        False, "a linear patch embedding beside the convolutions, which then start from zero (tiny models)"
    )
    blocks: int | None = opt(None, "residual blocks per level; null = 2 in encoders, 3 in decoders, as released")
    mid: bool = opt(True, "two more blocks at the coarsest level, as released (false: for tiny models)")

    @property
    def stride(self) -> int:
        return self.patch * 2 ** (len(self.multipliers) - 1)


def middle(width: int, config: CnnConfig) -> nn.ModuleList:
    """What the coarsest level has beside its own blocks: residual, attention where asked for, residual."""
    if not config.mid:
        return nn.ModuleList()
    first, last = (ResBlock(width, width, config.norm) for _ in range(2))
    return nn.ModuleList([first, AttnBlock(width), last] if config.attention else [first, last])


class CnnEncoder(nn.Module):
    """images (B,3,H,W) -> map (B,z_channels,H/stride,W/stride)."""

    @dataclass
    class Config(CnnConfig):
        pass

    def __init__(self, config: CnnConfig, image_size: int, z_channels: int, layout: Layout | None = None):
        super().__init__()
        self.patch, self.stride = config.patch, config.stride
        self.grid = image_size // self.stride
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            block = nn.Module()
            block.res, block.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.blocks or 2):
                block.res.append(ResBlock(width, out, config.norm))
                width = out
                if last and config.attention:
                    block.attn.append(AttnBlock(width))
            if not last:
                block.downsample = Downsample(width)
            self.conv_blocks.append(block)
        self.mid = middle(width, config)
        self.norm_out = norm(width, config.norm)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.linear_path = nn.Conv2d(3, z_channels, self.stride, self.stride) if config.linear_path else None
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(space_to_depth(images, self.patch) if self.patch > 1 else images)
        for block in self.conv_blocks:
            for i, res in enumerate(block.res):
                h = res(h)
                if len(block.attn):
                    h = block.attn[i](h)
            if hasattr(block, "downsample"):
                h = block.downsample(h)
        for layer in self.mid:
            h = layer(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h if self.linear_path is None else h + self.linear_path(images)
