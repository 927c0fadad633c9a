"""Precision and recall by k-nearest-neighbour balls.

A sample is precise when it lies in the ball of at least one reference image, whose radius is that image's distance
to its k-th nearest neighbour; recall swaps the two sides.
Source: Kynkaanniemi et al., Improved precision and recall metric (2019), as in the ADM evaluator (k = 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["PrecisionRecall", "precision_recall"]

BLOCK = 4096
"""Images a side whose distances are computed at a time; the evaluator's size, on which its float16 rule depends."""


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    recall: float


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, exact: bool = True, block: int = BLOCK,
    device: torch.device | str = "cpu",
) -> PrecisionRecall:
    """Fractions in [0,1] of samples near the reference, and of the reference near samples.

    Args:
        reference, samples: features (N,D) and (M,D); the sizes may differ, each at least k + 1.
        exact: True computes distances in float64. False repeats the published evaluator, whose half-precision
            distances inflate both values when features are large; report it under another name.
        device: where distances are computed; it holds both sets of features and one block of distances.

    Raises: ValueError for fewer than k + 1 images on a side.
    """
    if min(len(reference), len(samples)) <= k:
        raise ValueError(f"got {len(reference)} and {len(samples)} images; k={k} needs at least {k + 1} on each side")
    real, fake = (_blocks(features, exact, block, device) for features in (reference, samples))
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    precise = [torch.zeros(len(columns), dtype=torch.bool, device=device) for columns in fake]
    recalled = []
    for rows, row_radii in zip(real, real_radii, strict=True):
        found = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for columns, column_radii, inside in zip(fake, fake_radii, precise, strict=True):
            apart = rows.distances(columns)
            inside |= (apart <= row_radii[:, None]).any(dim=0)
            found |= (apart <= column_radii[None, :]).any(dim=1)
        recalled.append(found)
    return PrecisionRecall(torch.cat(precise).double().mean().item(), torch.cat(recalled).double().mean().item())


@dataclass(frozen=True)
class _Block:
    """Features (n,D), float32, with their squared norms (n,) in the precision of the distances."""

    features: Tensor
    norms: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def distances(self, other: _Block) -> Tensor:
        """Squared distances (n,m): float64, or float32 values rounded to float16 as the evaluator's device code does.

        If a half-precision distance overflows, the whole block is computed without rounding.
        """
        if self.norms.dtype == torch.float64:
            return _from_product(self.features.double() @ other.features.double().T, self.norms, other.norms)
        product = (self.features.half().float() @ other.features.half().float().T).half()
        apart = _from_product(product, self.norms, other.norms)
        if torch.isfinite(apart).all():
            return apart.float()
        a, b = self.features.double(), other.features.double()
        return _from_product(a @ b.T, a.square().sum(dim=1), b.square().sum(dim=1)).float()


def _blocks(features: np.ndarray, exact: bool, block: int, device: torch.device | str) -> list[_Block]:
    parts = torch.as_tensor(features).to(device).split(block)
    return [_Block(x, x.double().square().sum(dim=1) if exact else _sum_float16(x.half().square())) for x in parts]


def _radii(blocks: list[_Block], k: int) -> list[Tensor]:
    """Squared distance of every point to its k-th neighbour; the point itself is neighbour number zero."""
    radii = []
    for rows in blocks:
        nearest = rows.features.new_empty(len(rows), 0)
        for columns in blocks:
            pool = torch.cat([nearest, rows.distances(columns)], dim=1)
            nearest = pool.topk(min(k + 1, pool.shape[1]), dim=1, largest=False).values
        radii.append(nearest.max(dim=1).values)
    return radii


def _sum_float16(x: Tensor) -> Tensor:
    """Row sums of float16 (N,D), rounded after every addition, in the order of TensorFlow's CPU kernel.

    Precision and recall of close points depend on these roundings, so only this order repeats published values:
    split in halves down to 1,024 columns; then 8 lanes, four groups of lanes in turn; the lanes last, in float32.
    """
    if x.shape[1] > 1024:
        half = x.shape[1] // 2
        return _sum_float16(x[:, :half]) + _sum_float16(x[:, half:])
    whole = x.shape[1] // 8 * 8
    groups = x[:, :whole].reshape(len(x), -1, 8).unbind(dim=1)
    unrolled = len(groups) // 4 * 4
    lanes = x.new_zeros(len(x), 8)
    for phase in range(4 if unrolled else 0):
        partial = x.new_zeros(len(x), 8)
        for group in groups[phase:unrolled:4]:
            partial = partial + group
        lanes = lanes + partial
    for group in groups[unrolled:]:
        lanes = lanes + group
    rest = x.new_zeros(len(x))
    for column in range(whole, x.shape[1]):
        rest = rest + x[:, column]
    return rest + lanes.float().sum(dim=1).half()


def _from_product(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """(|a|^2 - 2ab) + |b|^2, at least 0, in that order and in place of the product."""
    return product.mul_(-2).add_(norm_a[:, None]).add_(norm_b[None, :]).clamp_min_(0)
