"""Batches of one fixed shape, so that an image's result does not depend on how many others it came with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["in_fixed_batches"]


def in_fixed_batches(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """function(rows), computed in batches of always the same size; the last one is filled up with copies of a row.

    Libraries choose their kernels, and with them the order of a sum, by the shape of a batch. With ranks and batch
    sizes the shapes would change, and with them now and then the last bit of a pixel.

    Args:
        rows: (B, ...) with B > 0; `function` must treat its rows independently and keep their order.
    """
    size = 8 if rows.device.type == "cpu" else 32
    found = []
    for part in rows.split(size):
        filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        found.append(function(filled)[: len(part)])
    return torch.cat(found)
