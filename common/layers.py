"""Small layers that more than one network uses: norms, DropPath, 2D rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DropPath", "LayerNorm", "RMSNorm", "rotary_table_2d", "rotate"]


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose parameters may be narrower than its input, as FSDP gathers them under bf16.

    CUDA's autocast widens both; torch's CPU kernel refuses bf16 parameters beside a float32 input.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> same shape."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(wide), self.bias.to(wide), self.eps)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, computed in float32, then scale per channel."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> same shape and dtype. The cast back comes before the weight, as released checkpoints expect."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a whole sample's branch with probability `rate`, scale the rest up."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> same shape."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand(x.shape[0], *([1] * (x.ndim - 1)), device=x.device) < keep
        return x * (mask.to(x.dtype) / keep)


def rotary_table_2d(grid: int, head_dim: int, num_prefix: int = 1, base: float = 10000.0) -> Tensor:
    """Rotation table of a grid x grid raster: float32 (num_prefix + grid^2, head_dim / 2, 2), last axis (cos, sin).

    The first half of the pairs turns with the row, the second half with the column. The `num_prefix` rows in
    front are zero for cos AND sin, so a prefix token's query and key become the zero vector; released LlamaGen
    checkpoints were trained that way.
    Source: LlamaGen (arXiv 2406.06525), section 2.2; rotary positions: RoFormer (arXiv 2104.09864), equation 34.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim {head_dim} is not a multiple of 4")
    half = head_dim // 2
    frequencies = base ** (-torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half)
    steps = torch.arange(grid, dtype=torch.float32, device="cpu")
    angles = torch.outer(steps, frequencies)
    rows = angles[:, None, :].expand(grid, grid, -1)
    columns = angles[None, :, :].expand(grid, grid, -1)
    cells = torch.cat((rows, columns), dim=-1).reshape(grid * grid, half)
    table = torch.stack((cells.cos(), cells.sin()), dim=-1)
    return torch.cat((torch.zeros(num_prefix, half, 2, device="cpu"), table))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent pairs of x (B, heads, T, head_dim) by table (T, head_dim / 2, 2), in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
