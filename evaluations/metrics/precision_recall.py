"""Precision and recall by k-nearest-neighbour balls.

A sample is precise when it lies in the ball of at least one reference image, whose radius is that image's distance
to its k-th nearest neighbour; recall swaps the two sides.
Source: Kynkaanniemi et al., Improved precision and recall metric (2019), as in the ADM evaluator (k = 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["PrecisionRecall", "precision_recall"]

BLOCK = 4096


@dataclass(frozen=True)
class PrecisionRecall:
    precision: float
    recall: float


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, k: int = 3, exact: bool = True, block: int = BLOCK
) -> PrecisionRecall:
    """Fractions in [0,1] of samples near the reference, and of the reference near samples.

    Args:
        reference, samples: features (N,D) and (M,D); the sizes may differ, each at least k + 1.
        exact: True takes distances in float64. False repeats the published evaluator, whose half-precision distances
            inflate both values when features are large; report it under another name (`precision_float16`).

    Raises: ValueError for fewer than k + 1 images on a side.
    """
    if min(len(reference), len(samples)) <= k:
        raise ValueError(f"got {len(reference)} and {len(samples)} images; k={k} needs at least {k + 1} on each side")
    distances = _distances_float64 if exact else _distances_float16
    reference, samples = torch.as_tensor(reference), torch.as_tensor(samples)
    reference_radii = _radii(reference, k, distances, block)
    sample_radii = _radii(samples, k, distances, block)
    precise = torch.zeros(len(samples), dtype=torch.bool)
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    for row in range(0, len(reference), block):
        rows = slice(row, row + block)
        for column in range(0, len(samples), block):
            columns = slice(column, column + block)
            apart = distances(reference[rows], samples[columns])
            precise[columns] |= (apart <= reference_radii[rows, None]).any(dim=0)
            recalled[rows] |= (apart <= sample_radii[None, columns]).any(dim=1)
    return PrecisionRecall(precise.double().mean().item(), recalled.double().mean().item())


def _radii(features: Tensor, k: int, distances: Callable[[Tensor, Tensor], Tensor], block: int) -> Tensor:
    """Squared distance of every point to its k-th neighbour; the point itself is neighbour number zero."""
    radii = []
    for row in range(0, len(features), block):
        nearest: Tensor | None = None
        for column in range(0, len(features), block):
            apart = distances(features[row : row + block], features[column : column + block])
            pool = apart if nearest is None else torch.cat([nearest, apart], dim=1)
            nearest = pool.topk(min(k + 1, pool.shape[1]), dim=1, largest=False).values
        radii.append(nearest.max(dim=1).values)
    return torch.cat(radii)


def _distances_float64(a: Tensor, b: Tensor) -> Tensor:
    return _squared(a.double(), b.double())


def _distances_float16(a: Tensor, b: Tensor) -> Tensor:
    """As the evaluator's device code: float16 throughout, float32 for the whole block if anything overflows."""
    a16, b16 = a.half(), b.half()
    product = (a16.float() @ b16.float().T).half()
    apart = _from_product(product, _sum_float16(a16 * a16), _sum_float16(b16 * b16))
    return apart.float() if torch.isfinite(apart).all() else _squared(a.float(), b.float())


def _sum_float16(x: Tensor) -> Tensor:
    """Row sums of float16 (N,D), rounded after every addition in the order TensorFlow's CPU kernel adds.

    Precision and recall of close points depend on these roundings, so only this order repeats published values:
    halves down to 1,024 columns; then 8 lanes, four lane groups in turn; the lanes last, in float32.
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


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return _from_product(a @ b.T, (a * a).sum(dim=1), (b * b).sum(dim=1))


def _from_product(product: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """(|a|^2 - 2ab) + |b|^2, at least 0, in that order and in place of the product."""
    return product.mul_(-2).add_(norm_a[:, None]).add_(norm_b[None, :]).clamp_min_(0)
