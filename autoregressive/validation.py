"""How well a generator predicts codes it has not trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist, loop

__all__ = ["position_losses"]


@torch.no_grad()
def position_losses(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_tokens: int, precision: str, device: torch.device
) -> Tensor:
    """Cross-entropy of every code position, averaged over the images of all ranks: float64 (num_tokens,), in nats.

    `batches`: this rank's (codes int64 (B,num_tokens), labels int64 (B,)), every image once over all ranks. Sums and
    counts are added up before the one division, so neither batch sizes nor shares of different length weigh in.
    """
    totals = torch.zeros(num_tokens + 1, dtype=torch.float64, device=device)  # the last entry counts images
    for codes, labels in batches:
        codes, labels = codes.to(device), labels.to(device)
        with loop.autocast(precision, device):
            logits = model(codes, labels)
        totals[:-1] += F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").double().sum(dim=0)
        totals[-1] += len(codes)
    totals = torch.stack(dist.all_gather(totals)).sum(dim=0)
    return totals[:-1] / totals[-1]
