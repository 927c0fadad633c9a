"""Transformer layers of the tokenizers, with the parameter names of the released checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.attention import attention
from common.config import opt
from common.errors import UserError
from common.layers import LayerNorm

SIZES = {  # name: (width, layers, heads)
    "tiny": (256, 4, 4),
    "small": (512, 6, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "xxxl": (2560, 48, 40),
}


@dataclass
class TransformerConfig:
    """A released size, or explicit width, layers and heads."""

    size: str | None = opt(None, f"{' | '.join(SIZES)}; null = the three keys below")
    width: int = opt(512, "embedding width D")
    layers: int = opt(6, "number of layers")
    heads: int = opt(8, "attention heads")

    def resolved(self) -> tuple[int, int, int]:
        """(width, layers, heads)."""
        if self.size is None:
            return self.width, self.layers, self.heads
        if self.size not in SIZES:
            raise UserError(f"transformer size {self.size!r} is unknown; expected one of {', '.join(SIZES)}")
        return SIZES[self.size]


class Attention(nn.Module):
    """Multi-head attention with `nn.MultiheadAttention`'s parameters.

    varying: the number of keys differs between calls, as under nested dropout.
    """

    def __init__(self, width: int, heads: int, varying: bool = False):
        super().__init__()
        self.heads, self.varying = heads, varying
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Tensor:
        """query (B,L,D), key and value (B,S,D), hidden (B,S) bool with True = not attended -> (B,L,D)."""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x, w, b in projections)
        mixed = attention(q, k, v, None if hidden is None else ~hidden[:, None, None, :], varying=self.varying)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ViTLayer(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """x (B,L,D), hidden (B,L) bool with True = not attended -> (B,L,D)."""
        h = self.norm1(x)
        x = x + self.self_attn(h, h, h, hidden)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class QFormerLayer(nn.Module):
    """Pre-norm self-attention among the queries, cross-attention to a memory, MLP.

    Positions are added in every layer, to queries and keys only. Source: DETR's decoder layer
    (arXiv 2005.12872) as GigaTok uses it.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.multihead_attn = Attention(width, heads, varying=True)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.norm3 = LayerNorm(width)

    def forward(
        self, queries: Tensor, memory: Tensor, query_pos: Tensor, memory_pos: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """queries (B,L,D), memory (B,S,D), positions (1,L,D) and (1,S,D), hidden (B,S) bool -> (B,L,D)."""
        h = self.norm1(queries)
        queries = queries + self.self_attn(h + query_pos, h + query_pos, h)
        h = self.norm2(queries)
        queries = queries + self.multihead_attn(h + query_pos, memory + memory_pos, memory, hidden)
        return queries + self.linear2(F.gelu(self.linear1(self.norm3(queries))))


def position_table(length: int, width: int) -> nn.Parameter:
    """Learned positions (L,1,D), standard normal over sqrt(D)."""
    return nn.Parameter(nn.init.normal_(torch.empty(length, 1, width), std=width**-0.5))
