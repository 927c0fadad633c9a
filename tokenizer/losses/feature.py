"""Losses between feature maps or feature sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine similarity of two sequences (B,L,D) over their positions: (B,). Source: GigaTok, semantic loss."""
    return F.cosine_similarity(student, teacher, dim=-1).mean(dim=1)


def contrastive_loss(a: Tensor, b: Tensor, scale: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of scale * a b^T against its diagonal; rows i of a and b (B,D) are a pair.

    counted: bool (B,), the pairs that exist, at least one; None = all. It selects without waiting for the device.

    Source: CLIP's loss without normalisation, as RobusTok uses it between teacher and latents.
    """
    logits = scale * a @ b.t()
    own = torch.arange(len(a), device=a.device)
    both = (logits, logits.t())
    if counted is not None:
        own = own.where(counted, -100)  # cross_entropy ignores these rows
        both = tuple(each.masked_fill(~counted, -torch.inf) for each in both)
    return sum(F.cross_entropy(each, own) for each in both) / 2
