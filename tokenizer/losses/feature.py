"""Losses between feature maps or feature sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError


def feature_loss(features: Tensor, target: Tensor, kind: str = "mse") -> Tensor:
    """Distance of two maps (B,C,H,W): "mse", or "cosine", the mean over positions of 1 - cosine along the channels.

    Source: GigaTok's feature reconstruction term; spec tokenizer 1.8.
    """
    if kind == "mse":
        return F.mse_loss(features, target)
    if kind == "cosine":
        return (1 - F.cosine_similarity(features, target, dim=1)).mean()
    raise UserError(f"feature loss got {kind!r}; expected mse or cosine")


def semantic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the mean cosine of two sequences (B,L,D). Source: GigaTok, semantic regularisation; spec tokenizer 4."""
    return -F.cosine_similarity(student, teacher, dim=-1).mean()


def contrastive_loss(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Symmetric cross-entropy of scale * a b^T against its diagonal; rows i of a and b (B,D) belong together.

    Source: CLIP's loss as RobusTok uses it between teacher and latents, not normalised; spec robustok 1.7.
    """
    logits = scale * a @ b.t()
    own = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
