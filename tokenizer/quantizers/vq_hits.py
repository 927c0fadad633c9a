"""RobusTok's quantizer: `vq` with another record of which codes are in use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from tokenizer.quantizers.vq import VectorQuantizer

RARE = 0.08


class HitCountQuantizer(VectorQuantizer):
    """Keeps a running mean of how often a step chooses each code, over all ranks.

    A code is in use when its count is at least 0.08 of an equal share. Source: VAR (arXiv 2404.02905), as in RobusTok.
    """

    @dataclass
    class Config(VectorQuantizer.Config):
        codebook_size: int = opt(4096, "number of codes K")
        codebook_dim: int = opt(64, "width of a code vector")
        rotation: bool = opt(False, "rotation trick instead of straight-through gradients")

    def _start_usage(self) -> None:
        self.register_buffer("hits", torch.zeros(self.codebook_size))

    def seen(self) -> Tensor:
        """1.0 for codes in use, else 0.0; float (K,)."""
        return ((self.hits > 0) & (self.hits >= RARE * self.hits.mean())).float()

    def _record(self, codes: Tensor) -> None:
        self._mark(codes)
        counts = torch.zeros_like(self.hits).index_add_(0, codes, self.hits.new_ones(len(codes)))
        decay = torch.where(self.hits.any(), 0.9 if self.step < 100 else 0.99, 0.0)
        self.hits.lerp_(counts, 1 - decay)
