"""Cross-entropy over large codebooks without float32 copies of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["cross_entropy"]

CHUNK = 2**24
"""Logits that are in float32 at one time: 64 MiB."""


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits as they are and one number per row, and computes the softmax again in the backward pass."""

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = torch.cat([part.float().logsumexp(dim=1) for part in _chunks(logits)])
        context.save_for_backward(logits, targets, total)
        return total - logits.gather(1, targets[:, None]).squeeze(1).float()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, total = context.saved_tensors
        found = torch.empty_like(logits)
        parts = (_chunks(each) for each in (found, logits))
        size = _rows(logits)
        for into, part, *rows in zip(*parts, *(each.split(size) for each in (targets, total, gradient)), strict=True):
            target, part_total, part_gradient = (each[:, None] for each in rows)
            share = (part.float() - part_total).exp_()
            share.scatter_add_(1, target, torch.full_like(part_total, -1.0))
            into.copy_(share.mul_(part_gradient))
        return found, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 (...), in nats, of logits (..., K) in any floating-point type and targets int64 (...)."""
    return _CrossEntropy.apply(logits.flatten(0, -2), targets.flatten()).view(targets.shape)


def _rows(logits: Tensor) -> int:
    return max(1, CHUNK // logits.shape[1])


def _chunks(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.split(_rows(logits))
