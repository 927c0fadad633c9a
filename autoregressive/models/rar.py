"""RAR: a GPT over 2D codes that trains on random orders, told at every step which position comes next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.layers import KVCache, modulate
from common.attention import attention
from common.config import opt
from common.errors import UserError
from common.hub import HubModel
from common.layers import LayerNorm
from common.numerics import uniform

__all__ = ["RAR", "SIZES", "random_order_probability"]

SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (64, 2, 4, 192),
    "small": (192, 6, 3, 768),
    "B": (768, 24, 16, 3072),
    "L": (1024, 24, 16, 4096),
    "XL": (1280, 32, 16, 5120),
    "XXL": (1408, 40, 16, 6144),
}
"""Published sizes (and two toys): name -> (width, layers, heads, feed-forward width)."""

SPARE_POSITIONS, SPARE_STEPS = 1024, 100
"""Released tables have that many rows beyond the image's codes; only the first two extra ones are ever read."""


class RAR(nn.Module, HubModel):
    """Decoder-only transformer over [start, class, code, code, ...] in any order of the codes.

    Source: RAR (arXiv 2411.00776), as RobusTok (arXiv 2509.12474) uses it.
    """

    hub_kind = "generator"

    @dataclass
    class Config:
        size: str = opt("B", "named size: " + ", ".join(SIZES))
        width: int | None = opt(None, "instead of the size's width")
        layers: int | None = opt(None, "instead of the size's number of blocks")
        heads: int | None = opt(None, "instead of the size's number of heads")
        ffn_width: int | None = opt(None, "instead of the size's feed-forward width")
        codebook_size: int | None = opt(None, "number of different codes; the trainer takes it from its data if unset")
        num_tokens: int | None = opt(None, "codes per image; the trainer takes it from its data if unset")
        num_classes: int | None = opt(None, "number of classes; the trainer takes it from its data if unset")
        attention_dropout: float = opt(0.1, "dropout on attention weights")
        dropout: float = opt(0.1, "dropout after attention and feed-forward")
        class_dropout: float = opt(0.1, "probability that training hides the class (for guidance)")
        random_until: float = opt(0.5, "share of the training steps in which every image has a random order")
        raster_from: float = opt(0.75, "share of the training steps from which every image has the raster order")

    def __init__(self, config: Config) -> None:
        """Raises: UserError for an unknown size, a number that is not set, or a width that the heads do not divide."""
        super().__init__()
        width, layers, heads, ffn_width = _dimensions(config)
        self.config = config
        self.width, self.num_layers, self.heads = width, layers, heads
        self.codebook_size, self.num_classes = config.codebook_size, config.num_classes
        self.num_tokens, self.class_dropout = config.num_tokens, config.class_dropout
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens + SPARE_POSITIONS, width))
        self.target_aware_pos_embed = nn.Parameter(torch.empty(1, self.num_tokens + SPARE_POSITIONS, width))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, self.num_tokens + SPARE_STEPS, width))
        self.blocks = nn.ModuleList(
            _Block(width, heads, ffn_width, config.dropout, config.attention_dropout) for _ in range(layers)
        )
        # Codes, an unused mask, classes, "no class".
        self.embeddings = nn.Embedding(self.codebook_size + 1 + self.num_classes + 1, width)
        self.adaln_before_head = _FinalNorm(width)
        self.lm_head = nn.Linear(width, self.codebook_size)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        # Zero modulations start every block as identity.
        for block in (*self.blocks, self.adaln_before_head):
            nn.init.zeros_(block.adaLN_modulation[1].weight)

    def hub_config(self) -> dict[str, Any]:
        return {"name": "rar", **super().hub_config()}

    # ------------------------------------------------------------------------------------------ teacher forcing

    def draw_orders(self, bits: Tensor, done: float) -> Tensor:
        """Orders int64 (B, N) for a training step, `done` in [0,1] of the way through the run.

        bits: random int64 (B, N + 1), see `common.numerics.random_bits`.
        """
        share = random_order_probability(done, self.config.random_until, self.config.raster_from)
        raster = uniform(bits[:, -1:]) >= share
        return torch.where(raster, torch.arange(self.num_tokens, device=bits.device), bits[:, :-1].argsort(dim=1))

    def forward(
        self, codes: Tensor, labels: Tensor, drop_labels: Tensor | None = None, orders: Tensor | None = None
    ) -> Tensor:
        """Logits of every code given the class and the codes before it in its image's order.

        codes: int64 (B, N) in raster order, N = num_tokens. labels: int64 (B,), num_classes = no class. drop_labels:
        bool (B,), True hides the class. orders: int64 (B, N), step s holds grid position orders[b, s]; None = raster.
        Returns (B, N, codebook_size) in the type that the head computes in, row i for grid position i.
        """
        if drop_labels is not None:
            labels = torch.where(drop_labels, self.null(labels), labels)
        if orders is None:
            return self.lm_head(self.states(codes, labels)[:, :-1])
        hidden = self.states(codes.gather(1, orders), labels, orders)[:, :-1]
        # States are put in raster order, not logits, which are many times larger.
        return self.lm_head(torch.empty_like(hidden).scatter_(1, orders.unsqueeze(-1).expand_as(hidden), hidden))

    def states(self, codes: Tensor, labels: Tensor, orders: Tensor | None = None) -> Tensor:
        """codes (B, N) in the order they are predicted -> the head's input (B, N + 1, D); row s predicts step s.

        The last row predicts nothing.
        """
        if codes.shape[1] != self.num_tokens:
            raise UserError(f"got {codes.shape[1]} codes per image; this generator was built for {self.num_tokens}")
        condition = self._class(labels)
        first = self.cls_token.expand(len(codes), -1, -1)
        x = torch.cat([first, condition, self.embeddings(codes)], dim=1)
        x = x + self._placed(self.pos_embed, orders, before=2)
        # The slot in front of a code is told that code's position; the start slot and the last code are told nothing.
        told = self._placed(self.target_aware_pos_embed, orders, before=2)[:, 2:]
        x = x + F.pad(told, (0, 0, 1, 1))
        condition = condition + self.timesteps_embeddings[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, condition)
        return self.adaln_before_head(x, condition)[:, 1:]

    def null(self, labels: Tensor) -> Tensor:
        """What stands for "no class" in the place of each of `labels` (B,)."""
        return torch.full_like(labels, self.num_classes)

    def _class(self, labels: Tensor) -> Tensor:
        return self.embeddings(labels + self.codebook_size + 1).unsqueeze(1)

    def _placed(self, table: Tensor, orders: Tensor | None, before: int) -> Tensor:
        """Rows of a position table in sequence order: `before` fixed ones, then one per code; (B or 1, before+N, D)."""
        if orders is None:
            return table[:, : before + self.num_tokens]
        rows = table[0, before : before + self.num_tokens][orders]
        return torch.cat([table[:, :before].expand(len(orders), -1, -1), rows], dim=1)

    # ------------------------------------------------------------------------------------------ cached decoding

    def new_cache(self, rows: int, num_tokens: int | None = None) -> KVCache:
        """An empty cache for `rows` sequences (twice the images under guidance) of up to `num_tokens` codes."""
        weight = self.embeddings.weight
        return KVCache(
            self.num_layers, rows, self.heads, (num_tokens or self.num_tokens) + 1, self.width // self.heads,
            dtype=KVCache.dtype_for(weight), device=weight.device,
        )

    def prefill(self, labels: Tensor, cache: KVCache, codes: Tensor | None = None) -> Tensor:
        """Start sequences from labels (B,) and their first codes (B, t), raster order, none if not given, in one pass.

        Fills the cache's first slots; returns the logits (B, codebook_size) of code number t.
        """
        x = torch.cat([self.cls_token.expand(len(labels), -1, -1), self._class(labels)], dim=1)
        if codes is not None:
            x = torch.cat([x, self.embeddings(codes)], dim=1)
        length = x.shape[1]
        x = x + self.pos_embed[:, :length]
        x = torch.cat([x[:, :1], x[:, 1:] + self.target_aware_pos_embed[:, 2 : length + 1]], dim=1)
        return self._cached(x, labels, 0, cache)

    def decode_one(self, codes: Tensor, position: int, cache: KVCache, labels: Tensor) -> Tensor:
        """Feed code number position - 1, codes (B,), for `position` >= 1: logits (B, codebook_size) of the next."""
        place = 1 + position
        x = self.embeddings(codes).unsqueeze(1) + self.pos_embed[:, place : place + 1]
        if position < self.num_tokens:
            x = x + self.target_aware_pos_embed[:, place + 1 : place + 2]
        return self._cached(x, labels, place, cache)

    def _cached(self, x: Tensor, labels: Tensor, place: int, cache: KVCache) -> Tensor:
        condition = self._class(labels) + self.timesteps_embeddings[:, place : place + x.shape[1]]
        for index, block in enumerate(self.blocks):
            x = block(x, condition, cache, index, place)
        return self.lm_head(self.adaln_before_head(x[:, -1], condition[:, -1])).float()


class _Attention(nn.Module):
    """Causal self-attention with biased projections and LayerNorm on queries and keys."""

    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = LayerNorm(width // heads, eps=1e-6)
        self.k_norm = LayerNorm(width // heads, eps=1e-6)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, place: int) -> Tensor:
        """x (B, T, D) -> (B, T, D). With a cache, x stands at `place` and sees everything before it."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        if cache is not None:
            mixed = cache.attend(layer, place, query, key, value)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = attention(query, key, value, causal=True, dropout=dropout)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class _Block(nn.Module):
    """Pre-norm attention and MLP, scaled, shifted and gated by the condition of each slot."""

    def __init__(self, width: int, heads: int, ffn_width: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads, dropout, attention_dropout)
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, ffn_width), "fc2": nn.Linear(ffn_width, width)})
        self.mlp_drop = nn.Dropout(dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor, cache: KVCache | None = None, layer: int = 0, place: int = 0
    ) -> Tensor:
        """x and condition (B, T, D) -> (B, T, D)."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate_a * self.attn(modulate(self.norm1(x), shift_a, scale_a), cache, layer, place)
        hidden = self.mlp_drop(F.gelu(self.mlp["fc1"](modulate(self.norm2(x), shift_f, scale_f))))
        return x + gate_f * self.mlp_drop(self.mlp["fc2"](hidden))


class _FinalNorm(nn.Module):
    """LayerNorm without parameters, modulated; here the scale comes before the shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return modulate(F.layer_norm(x, (self.width,), eps=1e-6), shift, scale)


def _dimensions(config: RAR.Config) -> tuple[int, int, int, int]:
    """(width, layers, heads, feed-forward width) of a config, checked."""
    name = config.size.removeprefix("RAR-")
    if name not in SIZES:
        raise UserError(f"unknown RAR size {config.size!r}; known: {', '.join(SIZES)} (--gpt-model)")
    for key in ("codebook_size", "num_tokens", "num_classes"):
        if not getattr(config, key):
            raise UserError(f"RAR's {key!r} is not set; give it in the config as model.{key}=NUMBER")
    given = (config.width, config.layers, config.heads, config.ffn_width)
    width, layers, heads, ffn_width = (own or known for own, known in zip(given, SIZES[name], strict=True))
    if width % heads:
        raise UserError(f"width {width} is not divisible by heads {heads}; change one of them")
    return width, layers, heads, ffn_width


def random_order_probability(done: float, start: float, end: float) -> float:
    """Share of images that train on a random order: 1 up to `start`, 0 from `end` on, linear between."""
    if done <= start:
        return 1.0
    return 0.0 if done >= end else 1.0 - (done - start) / (end - start)
