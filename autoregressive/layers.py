"""The transformer block of the GPT generators and the cache its attention decodes with."""

from __future__ import annotations

import functools
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import attention
from common.layers import DropPath, LayerNorm, RMSNorm, rotate

__all__ = ["Attention", "Block", "FeedForward", "KVCache", "keep_caches_uncompiled", "modulate"]


class KVCache:
    """Keys and values of every block, allocated once and reused for any number of batches.

    It lives outside the module, so a state dict never contains it and training after sampling just works.
    Nothing needs clearing between batches: a step at position p only ever reads slots 0..p.

    keys, values: (layers, rows, heads, length, head_dim).
    """

    def __init__(
        self, layers: int, rows: int, heads: int, length: int, head_dim: int, *,
        dtype: torch.dtype, device: torch.device,
    ) -> None:
        shape = (layers, rows, heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def dtype_for(weight: Tensor) -> torch.dtype:
        """That of the weights; on CPUs float32, where attention of one query in half precision is far slower."""
        return torch.float32 if weight.device.type == "cpu" else weight.dtype

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    def part(self, start: int, stop: int) -> KVCache:
        """The cache of rows start..stop alone, in the same memory."""
        part = copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        return part

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def attend(
        self, layer: int, position: int, query: Tensor, key: Tensor, value: Tensor, shown: Tensor | None = None
    ) -> Tensor:
        """Keep key and value, written at `position`, and return what the queries find in everything up to there.

        query, key, value: (rows, heads, T, head_dim), as is what is returned. shown: as for `Attention.forward`; None
        asks for T = 1 or position 0.
        """
        rows, end = key.shape[0], position + key.shape[2]
        self.keys[layer, :rows, :, position:end] = key
        self.values[layer, :rows, :, position:end] = value
        keys, values = self.keys[layer, :rows, :, :end], self.values[layer, :rows, :, :end]
        causal = shown is None and position == 0
        found = attention(query.to(keys.dtype), keys, values, shown, causal=causal, varying=True)
        return found.to(query.dtype)


@functools.cache
def keep_caches_uncompiled() -> None:
    """Call before blocks are compiled: with them, `KVCache.attend` would be compiled anew for many of the positions.

    Not a decorator of that method: torch would import its compiler, over a second, for every job that imports this.
    """
    KVCache.attend = torch.compiler.disable(KVCache.attend)


class Attention(nn.Module):
    """Causal self-attention with one fused projection (q | k | v) and no biases."""

    def __init__(self, width: int, heads: int, qk_norm: bool, dropout: float, residual_dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.residual_dropout = nn.Dropout(residual_dropout)

    def forward(
        self, x: Tensor, table: Tensor | None, shown: Tensor | None = None,
        cache: KVCache | None = None, layer: int = 0, position: int = 0,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). With a cache, x begins at `position` and sees all positions before it.

        shown: bool (B, 1, T, position + T), what each token attends to; None = everything up to itself.
        """
        batch, steps, width = x.shape
        query, key, value = self.wqkv(x).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        if cache is not None:
            mixed = cache.attend(layer, position, query, key, value, shown)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = attention(query, key, value, shown, causal=shown is None, dropout=dropout)
        return self.residual_dropout(self.wo(mixed.transpose(1, 2).reshape(batch, steps, width)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x). The hidden width is two thirds of 4 D, rounded up to `multiple_of`."""

    def __init__(self, width: int, multiple_of: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // multiple_of) * multiple_of
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> (..., D)."""
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, D) scaled and shifted by per-sample shift, scale (B, 1, D)."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Pre-norm block; with `adaln`, the condition scales, shifts and gates both branches.

    adaln "full": an own projection of the condition to six vectors. "simple": the model projects it once and the
    block adds its own six learned offsets (`ada_gss`).
    Source: GPT of LlamaGen (arXiv 2406.06525); adaLN-zero: DiT (arXiv 2212.09748), section 3.2.
    """

    def __init__(
        self, width: int, heads: int, *, multiple_of: int, qk_norm: bool, adaln: str,
        attention_dropout: float, residual_dropout: float, ffn_dropout: float, drop_path: float,
    ) -> None:
        super().__init__()
        self.adaln = adaln
        if adaln == "simple":
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        self.attention = Attention(width, heads, qk_norm, attention_dropout, residual_dropout)
        self.feed_forward = FeedForward(width, multiple_of, ffn_dropout)
        self.attention_norm = RMSNorm(width)
        self.ffn_norm = RMSNorm(width)
        self.drop_path = DropPath(drop_path)
        if adaln == "full":
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor | None, table: Tensor | None, shown: Tensor | None = None,
        cache: KVCache | None = None, layer: int = 0, position: int = 0,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). condition: (B, 1, D) for "full", its projection (B, 1, 6, D) for "simple"."""
        if self.adaln == "none":
            x = x + self.drop_path(self.attention(self.attention_norm(x), table, shown, cache, layer, position))
            return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))
        if self.adaln == "simple":
            six = (condition + self.ada_gss).unbind(2)
        else:
            six = self.adaLN_modulation(condition).chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = six
        x_a = modulate(self.attention_norm(x), shift_a, scale_a)
        attended = self.attention(x_a, table, shown, cache, layer, position)
        x = x + gate_a * self.drop_path(attended)
        return x + gate_f * self.drop_path(self.feed_forward(modulate(self.ffn_norm(x), shift_f, scale_f)))
