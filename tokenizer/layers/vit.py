"""A plain vision transformer with the parameter names of timm's, which several released files use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import attention
from common.config import opt
from common.layers import DropPath, LayerNorm


@dataclass
class VitConfig:
    """The defaults are ViT-B."""

    width: int = opt(768, "embedding width D")
    layers: int = opt(12, "number of blocks")
    heads: int = opt(12, "attention heads")
    patch: int = opt(16, "pixels per patch side")
    drop_path: float = opt(0.0, "stochastic depth of the last block in training; rises linearly from 0")


class VitAttention(nn.Module):
    """Multi-head self-attention with one biased projection (q | k | v)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,L,D) -> (B,L,D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear to four times the width, GELU ("none": exact, "tanh": its approximation), Linear back."""

    def __init__(self, width: int, gelu: str = "none"):
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch. Source: CaiT, as in DINOv2."""

    def __init__(self, width: int, start: float = 1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class VitBlock(nn.Module):
    """Pre-norm attention and MLP, each behind LayerScale where `scaled` (DINOv2) and stochastic depth."""

    def __init__(self, width: int, heads: int, scaled: bool = True, gelu: str = "none", drop_path: float = 0.0):
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, heads)
        self.ls1 = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, gelu)
        self.ls2 = LayerScale(width) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """images (B,3,H,W) -> patch embeddings (B,L,D), row-major."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """Class token and learned positions over a `grid` x `grid` raster, then blocks and a last norm.

    `scaled`: LayerScale, as in DINOv2. `reads_images` False leaves the patch convolution out.
    """

    def __init__(
        self, config: VitConfig, grid: int, *, scaled: bool = True, gelu: str = "none", reads_images: bool = True
    ):
        super().__init__()
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid * grid, width))
        if reads_images:
            self.patch_embed = PatchEmbed(width, config.patch)
        self.blocks = nn.ModuleList(
            VitBlock(width, config.heads, scaled, gelu, config.drop_path * index / max(config.layers - 1, 1))
            for index in range(config.layers)
        )
        self.norm = LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def place(self, tokens: Tensor) -> Tensor:
        """tokens (B,L,D), L a square -> (B,1+L,D): the class token in front, positions added, in fp32."""
        tokens = tokens.float()
        placed = torch.cat([self.cls_token.float().expand(len(tokens), -1, -1), tokens], dim=1)
        return placed + self.positions(tokens.shape[1])

    def positions(self, count: int) -> Tensor:
        """The table (1,1+count,D) for a square of `count` tokens, resampled (bicubic, antialiased) where needed."""
        table = self.pos_embed.float()
        if table.shape[1] == 1 + count:
            return table
        grid, side = (round(length**0.5) for length in (table.shape[1] - 1, count))
        maps = table[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        maps = F.interpolate(maps, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([table[:, :1], maps.flatten(2).transpose(1, 2)], dim=1)

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """The stream (B,L,D) after each block."""
        for block in self.blocks:
            x = block(x)
            yield x

    def run(self, x: Tensor) -> Tensor:
        """All blocks and the last norm; x (B,L,D)."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,H,W), normalised as the weights expect -> (B,1+G*G,D), class token first."""
        return self.run(self.place(self.patch_embed(images)))
