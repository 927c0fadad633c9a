"""Convolutional building blocks of the pixel encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import attention


class GroupNorm(nn.GroupNorm):
    """The norm before every convolution: 32 groups.

    The map is made contiguous first. torch 2.13 normalises channels_last maps on CPUs in a less accurate way: the
    relative error is 1e-4 instead of 1e-6 where the mean is ten times the deviation. CUDA makes the same copy itself.
    """

    def __init__(self, channels: int, affine: bool = True):
        super().__init__(32, channels, eps=1e-6, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class ResBlock(nn.Module):
    """Norm, swish, conv3x3, twice, plus the input (through a 1x1 conv when the width changes)."""

    def __init__(
        self, channels_in: int, channels_out: int, norm: Callable[[int], nn.Module] = GroupNorm, bias: bool = True
    ):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        same = channels_in == channels_out
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=bias)

    def branch(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.nin_shortcut(x) + self.branch(x)


class HiddenShortcutBlock(ResBlock):
    """Where the width changes, the 1x1 convolution acts on the branch: the input does not reach the sum (MaskGIT)."""

    def __init__(
        self, channels_in: int, channels_out: int, norm: Callable[[int], nn.Module] = GroupNorm, bias: bool = True
    ):
        super().__init__(channels_in, channels_out, norm, bias)
        self.changes = channels_in != channels_out
        if self.changes:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return h + (self.nin_shortcut(h) if self.changes else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a map, as a residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """conv3x3 with stride 2; zeros are padded on the right and the bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class DownsampleCentred(nn.Module):
    """conv3x3 with stride 2; zeros are padded on all sides (Open-MAGVIT2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UpsampleNearest(nn.Module):
    """Nearest x2, then conv3x3 (LlamaGen)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UpsampleDepthToSpace(nn.Module):
    """conv3x3 to four times the width, then depth-to-space (GigaTok)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv1(x), 2)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """(B,C,H,W) -> (B, block^2*C, H/block, W/block), the inverse of `depth_to_space`."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(b, block**2 * c, h // block, w // block)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """(B, block^2*C, H, W) -> (B, C, block*H, block*W) in DCR order: channel (i*block+j)*C+c goes to offset (i, j).

    `torch.pixel_shuffle` orders the channels the other way round (c*block^2 + i*block + j).
    """
    b, channels, h, w = x.shape
    x = x.reshape(b, block, block, channels // block**2, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(b, channels // block**2, h * block, w * block)


class AdaptiveGroupNorm(nn.Module):
    """GroupNorm whose scale and bias come from the standard deviation and mean of a style map over its positions.

    No "1 +" stands before the scale. Source: GigaTok's decoder, after MAGVIT-v2 (arXiv 2310.05737).
    """

    def __init__(self, style_channels: int, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels, affine=False)
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        positions = style.flatten(2).float()
        scale = self.gamma((positions.var(dim=2, unbiased=True) + 1e-6).sqrt().to(style.dtype))
        bias = self.beta(positions.mean(dim=2).to(style.dtype))
        return self.norm(x) * scale[:, :, None, None] + bias[:, :, None, None]


def init_weights(module: nn.Module) -> None:
    """Truncated normal of deviation 0.02 for linear, convolution and embedding weights, zero biases.

    Norm layers keep their 1 and 0. Source: GigaTok's initialiser of the whole model.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if getattr(layer, "bias", None) is not None:
                torch.nn.init.zeros_(layer.bias)
