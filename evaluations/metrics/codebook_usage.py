"""How evenly a codebook is used, overall and at every position of the sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["CodeUsage"]


class CodeUsage:
    """Counts codes per position: int64 (num_tokens, codebook_size), whatever the number of images."""

    def __init__(self, num_tokens: int, codebook_size: int) -> None:
        self.counts = torch.zeros(num_tokens, codebook_size, dtype=torch.int64)

    def update(self, codes: Tensor) -> None:
        """Add codes int64 (B,num_tokens)."""
        positions, size = self.counts.shape
        flat = codes.cpu() + torch.arange(positions) * size
        self.counts += torch.bincount(flat.flatten(), minlength=positions * size).view(positions, size)

    def summary(self) -> dict[str, Any]:
        """Shares of the codebook that occur, and perplexities (the number of equally likely codes of equal entropy).

        At one position no more codes can occur than there are images: `images` says how many there were.
        """
        overall = self.counts.sum(dim=0)
        return {
            "images": int(self.counts[0].sum()),
            "codebook_usage": float((overall > 0).double().mean()),
            "codebook_perplexity": _perplexity(overall[None])[0],
            "usage_per_position": (self.counts > 0).double().mean(dim=1).tolist(),
            "perplexity_per_position": _perplexity(self.counts),
        }


def _perplexity(counts: Tensor) -> list[float]:
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    return torch.special.entr(share).sum(dim=1).exp().tolist()
