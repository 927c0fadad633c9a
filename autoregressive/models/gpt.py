"""The class-conditional GPT over image codes: learned 1D positions (GigaTok, ReTok) or 2D rotary ones (LlamaGen)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.layers import Block, KVCache, modulate
from common.config import opt
from common.errors import UserError, nearest
from common.hub import HubModel
from common.layers import RMSNorm, rotary_table_2d

__all__ = ["GPT", "SIZES"]

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (64, 2, 4),
    "small": (192, 6, 3),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1280, 36, 20),
    "XXL": (1536, 48, 24),
    "XXXL": (2560, 48, 40),
    "1B": (2048, 22, 32),
    "3B": (3200, 24, 32),
    "7B": (4096, 32, 32),
}
"""Released sizes (and two toys): name -> (width, layers, heads)."""


class _ClassEmbedding(nn.Module):
    """Class table whose last row stands for "no class"; a module of its own for the released state-dict name."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels).unsqueeze(1)


class _CaptionEmbedding(nn.Module):
    """Text features (B, P, F), left-padded with zeros -> (B, P, D). Source: LlamaGen's text-conditional models."""

    def __init__(self, tokens: int, features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("uncond_embedding", torch.randn(tokens, features) / features**0.5)
        layers = {"fc1": nn.Linear(features, width, bias=False), "fc2": nn.Linear(width, width, bias=False)}
        self.cap_proj = nn.ModuleDict(layers)

    def forward(self, captions: Tensor) -> Tensor:
        return self.cap_proj["fc2"](F.gelu(self.cap_proj["fc1"](captions), approximate="tanh"))


class GPT(nn.Module, HubModel):
    """Decoder-only transformer over [class, code 0, code 1, ...]; the output at position p predicts code p.

    With `condition` "caption" the class is replaced by P text features, and `labels` are these: float (B, P, F),
    left-padded with zeros. A padded slot is seen by itself only.
    Source: LlamaGen (arXiv 2406.06525), section 2.2; 1D variant: GigaTok (arXiv 2504.08736).
    """

    hub_kind = "generator"

    @dataclass
    class Config:
        size: str = opt("B", "named size: " + ", ".join(SIZES))
        width: int | None = opt(None, "instead of the size's width")
        layers: int | None = opt(None, "instead of the size's number of blocks")
        heads: int | None = opt(None, "instead of the size's number of heads")
        multiple_of: int = opt(256, "the feed-forward width is rounded up to a multiple of this")
        codebook_size: int | None = opt(None, "number of different codes; the trainer takes it from its data if unset")
        num_tokens: int | None = opt(None, "codes per image; the trainer takes it from its data if unset")
        num_classes: int | None = opt(None, "number of classes; the trainer takes it from its data if unset")
        positions: str = opt("learned", "learned (1D tokenizers) or rope2d (square grids)")
        qk_norm: bool = opt(False, "LayerNorm on queries and keys")
        adaln: str = opt("none", "none, full (a projection per block) or simple (one shared projection)")
        token_dropout: float = opt(0.1, "dropout on the input embeddings")
        attention_dropout: float = opt(0.0, "dropout on attention weights")
        residual_dropout: float = opt(0.1, "dropout after attention")
        ffn_dropout: float = opt(0.1, "dropout after the feed-forward")
        drop_path: float = opt(0.0, "stochastic depth of the last block; rises linearly from 0")
        class_dropout: float = opt(0.1, "probability that training hides the class (for guidance)")
        condition: str = opt("class", "class, or caption (text features; LlamaGen's t2i files)")
        caption_tokens: int = opt(120, "caption: number of text features P")
        caption_width: int = opt(2048, "caption: width of a text feature F; 2048 for flan-T5-XL")

    def __init__(self, config: Config) -> None:
        """Raises: UserError for an unknown size or option value, or numbers that do not fit together."""
        super().__init__()
        width, layers, heads = _dimensions(config)
        self.config = config
        self.width, self.num_layers, self.heads = width, layers, heads
        self.codebook_size, self.num_classes = config.codebook_size, config.num_classes
        self.num_tokens = config.num_tokens
        self.class_dropout = config.class_dropout
        self.prefix = 1 if config.condition == "class" else config.caption_tokens
        if config.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.empty(1 + self.num_tokens, width))
        else:
            self.positional_embedding = None
            # A plain attribute: it belongs to no state dict and must stay float32 when the weights are cast.
            self._table = rotary_table_2d(math.isqrt(self.num_tokens), width // heads, self.prefix)
        if config.condition == "class":
            self.cls_embedding: nn.Module = _ClassEmbedding(self.num_classes, width)
        else:
            self.cls_embedding = _CaptionEmbedding(config.caption_tokens, config.caption_width, width)
        self.tok_embeddings = nn.Embedding(self.codebook_size, width)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(
            Block(
                width, heads, multiple_of=config.multiple_of, qk_norm=config.qk_norm, adaln=config.adaln,
                attention_dropout=config.attention_dropout, residual_dropout=config.residual_dropout,
                ffn_dropout=config.ffn_dropout, drop_path=config.drop_path * index / max(layers - 1, 1),
            )
            for index in range(layers)
        )
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, self.codebook_size, bias=False)
        if config.adaln == "simple":
            self.adaLN = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if config.adaln != "none":
            self.final_adaLN = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        # A zero head makes the first loss exactly log(codebook_size); zero modulations start every block as identity.
        zeroed = [self.output]
        if self.config.adaln == "full":
            zeroed += [block.adaLN_modulation[1] for block in self.layers]
        if self.config.adaln == "simple":
            zeroed.append(self.adaLN[1])
        if self.config.adaln != "none":
            zeroed.append(self.final_adaLN[1])
        for module in zeroed:
            nn.init.zeros_(module.weight)
        if self.positional_embedding is not None:
            nn.init.normal_(self.positional_embedding, std=self.width**-0.5)

    def hub_config(self) -> dict[str, Any]:
        return {"name": "gpt", **super().hub_config()}

    # ------------------------------------------------------------------------------------------ teacher forcing

    def forward(self, codes: Tensor, labels: Tensor, drop_labels: Tensor | None = None) -> Tensor:
        """Logits of every code given the class and the codes before it.

        codes: int64 (B, n), n <= num_tokens; the last one is never read. labels: int64 (B,), num_classes = no class.
        drop_labels: bool (B,), True hides the class; None draws it (`class_dropout`) in training, hides none in eval.
        Returns (B, n, codebook_size) in the type that the head computes in.
        """
        return self.forward_with_states(codes, labels, drop_labels, ())[0]

    def forward_with_states(
        self, codes: Tensor, labels: Tensor, drop_labels: Tensor | None, layers: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits as from `forward`, and the hidden states (B, n, D) after each of the blocks `layers` (1-based)."""
        (*states, last), condition = self._hidden(codes, labels, drop_labels, (*layers, len(self.layers)))
        return self._head(last, condition), states

    def features(self, codes: Tensor, labels: Tensor, layer: int) -> Tensor:
        """Hidden states (B, n, D) after block `layer` (1-based), before the final norm."""
        return self._hidden(codes, labels, None, (layer,))[0][0]

    def _hidden(
        self, codes: Tensor, labels: Tensor, drop: Tensor | None, layers: Sequence[int]
    ) -> tuple[list[Tensor], Tensor | None]:
        """States after the blocks `layers` (1-based), and the condition; later blocks than these are not run."""
        length = codes.shape[1]
        if not 1 <= length <= self.num_tokens:
            raise UserError(f"got {length} codes per image; this generator was built for 1 to {self.num_tokens}")
        if drop is None and self.training and self.class_dropout > 0:
            drop = torch.rand(len(labels), device=labels.device) < self.class_dropout
        if drop is not None:
            labels = torch.where(drop.view(-1, *[1] * (labels.ndim - 1)), self.null(labels), labels)
        x = torch.cat((self.cls_embedding(labels), self.tok_embeddings(codes[:, :-1])), dim=1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[:length]
        condition, projected = self._condition(x[:, :1])
        x = self.token_dropout(x)
        table, shown = self._rotary(0, x.shape[1], x.device), self._shown(labels, 0, x.shape[1])
        states = {}
        for number, block in enumerate(self.layers[: max(layers)], start=1):
            x = states[number] = block(x, projected, table, shown)
        return [states[number][:, self.prefix - 1 :] for number in layers], condition

    def null(self, labels: Tensor) -> Tensor:
        """What stands for "no class" or "no caption" in the place of each of `labels`; padding stays padding."""
        if self.config.condition == "class":
            return torch.full_like(labels, self.num_classes)
        return self.cls_embedding.uncond_embedding.to(labels.dtype) * labels.any(dim=-1, keepdim=True)

    def _shown(self, labels: Tensor, start: int, stop: int) -> Tensor | None:
        """Which of the slots 0..stop each of the slots start..stop attends to, bool (B, 1, stop - start, stop).

        None where that is simply all before it.
        """
        if self.config.condition == "class":
            return None
        causal = torch.ones(stop, stop, dtype=torch.bool, device=labels.device).tril()
        real = F.pad(labels.any(dim=-1), (0, stop - self.prefix), value=True)
        itself = torch.eye(stop, dtype=torch.bool, device=labels.device)
        return (causal & (real[:, None, None, :] | itself))[:, :, start:]

    def _condition(self, first: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The condition (B, 1, D), which is the class slot's input embedding, and what the blocks read of it."""
        if self.config.adaln == "none":
            return None, None
        if self.config.adaln == "simple":
            return first, self.adaLN(first).unflatten(-1, (6, self.width))
        return first, first

    def _rotary(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        if self.positional_embedding is not None:
            return None
        if self._table.device != device:
            with torch.inference_mode(False):  # the next call may need it for a backward pass
                self._table = self._table.to(device)
        return self._table[start:stop]

    def _head(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.norm(x)
        if condition is not None:
            shift, scale = self.final_adaLN(condition).chunk(2, dim=-1)
            x = modulate(x, shift, scale)
        return self.output(x)

    # ------------------------------------------------------------------------------------------ cached decoding

    def new_cache(self, rows: int, num_tokens: int | None = None) -> KVCache:
        """An empty cache for `rows` sequences (twice the images under guidance) of up to `num_tokens` codes."""
        weight = self.tok_embeddings.weight
        length = self.prefix - 1 + (num_tokens or self.num_tokens)
        return KVCache(
            self.num_layers, rows, self.heads, length, self.width // self.heads,
            dtype=KVCache.dtype_for(weight), device=weight.device,
        )

    def prefill(self, labels: Tensor, cache: KVCache, codes: Tensor | None = None) -> Tensor:
        """Start sequences from labels (B,) and their first codes (B, t), none if not given, in one pass.

        Fills the cache's first slots; returns the logits (B, codebook_size) of code number t.
        """
        x = self.cls_embedding(labels)
        if codes is not None:
            x = torch.cat((x, self.tok_embeddings(codes)), dim=1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[: x.shape[1]]
        return self._step(x, labels, 0, cache)

    def decode_one(self, codes: Tensor, position: int, cache: KVCache, labels: Tensor) -> Tensor:
        """Feed code number position - 1, codes (B,), `position` >= 1.

        Returns the logits (B, codebook_size) of code number `position`. labels are the ones of `prefill`.
        """
        x = self.tok_embeddings(codes).unsqueeze(1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[position]
        return self._step(x, labels, self.prefix - 1 + position, cache)

    def _first(self, labels: Tensor) -> Tensor:
        x = self.cls_embedding(labels)
        return x if self.positional_embedding is None else x + self.positional_embedding[0]

    def _step(self, x: Tensor, labels: Tensor, position: int, cache: KVCache) -> Tensor:
        condition, projected = (None, None) if self.config.adaln == "none" else self._condition(self._first(labels))
        stop = position + x.shape[1]
        table, shown = self._rotary(position, stop, x.device), self._shown(labels, position, stop)
        for index, block in enumerate(self.layers):
            x = block(x, projected, table, shown, cache, index, position)
        return self._head(x[:, -1:], condition).squeeze(1).float()


def _dimensions(config: GPT.Config) -> tuple[int, int, int]:
    """(width, layers, heads) of a config, checked."""
    name = config.size.removeprefix("GPT-")
    if name not in SIZES:
        raise UserError(f"unknown GPT size {config.size!r}{nearest(name, SIZES)}; known: {', '.join(SIZES)}")
    width, layers, heads = SIZES[name]
    width, layers, heads = config.width or width, config.layers or layers, config.heads or heads
    if config.condition not in ("class", "caption"):
        raise UserError(f"condition is {config.condition!r}; expected 'class' or 'caption'")
    for key in ("codebook_size", "num_tokens") + (("num_classes",) if config.condition == "class" else ()):
        if not getattr(config, key):
            raise UserError(f"the GPT's {key!r} is not set; give it in the config as model.{key}=NUMBER")
    if config.positions not in ("learned", "rope2d"):
        raise UserError(f"positions is {config.positions!r}; expected 'learned' or 'rope2d'")
    if config.adaln not in ("none", "full", "simple"):
        raise UserError(f"adaln is {config.adaln!r}; expected 'none', 'full' or 'simple'")
    if config.condition == "caption" and (config.positions, config.adaln) != ("rope2d", "none"):
        raise UserError("captions need positions='rope2d' and adaln='none', as in the released models")
    if width % heads:
        raise UserError(f"width {width} is not divisible by heads {heads}; change width or heads")
    if config.positions == "rope2d" and math.isqrt(config.num_tokens) ** 2 != config.num_tokens:
        raise UserError(f"rope2d positions need a square number of codes, got {config.num_tokens}; use learned ones")
    if config.positions == "rope2d" and (width // heads) % 4:
        raise UserError(f"rope2d positions need a head width divisible by 4, got {width // heads}; change heads")
    return width, layers, heads
