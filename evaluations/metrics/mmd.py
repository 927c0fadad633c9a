"""Maximum mean discrepancies of two sets of features: KID and CMMD.

Both are sums of a kernel over all pairs of images. The sums are computed in blocks, in float64.
Sources: KID: Binkowski et al., Demystifying MMD GANs (2018), section 4. CMMD: Jayasumana et al., Rethinking FID (2024),
section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["BLOCK", "SUBSETS", "SUBSET_SIZE", "cmmd", "kernel_sums", "kid", "kid_replicates"]

BLOCK = 4096
"""Images a side whose kernel values are held at a time."""
SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020
"""KID is the mean over these subsets; number, size and seed are those of torch-fidelity."""
SIGMA, SCALE = 10.0, 1000.0
"""CMMD's kernel width, and the factor of its published values."""

Kernel = Callable[[Tensor, Tensor], Tensor]


def kid(first: np.ndarray, second: np.ndarray, size: int = SUBSET_SIZE, device: torch.device | str = "cpu") -> float:
    """The unbiased squared MMD of features (N,D) and (M,D), averaged over subsets of `size` images a side.

    With fewer images than `size` the subsets have as many as the smaller side has.
    """
    size = min(size, len(first), len(second))
    x, y = (torch.as_tensor(side).to(device, torch.float64) for side in (first, second))
    if size == len(x) == len(y):  # every subset would be the whole
        return float(kid_replicates(first, second, *[np.ones((1, size))] * 2, device=device)[0])
    rng, found = np.random.RandomState(SUBSET_SEED), []
    for _ in range(SUBSETS):
        a, b = (side[torch.from_numpy(rng.choice(len(side), size, replace=False))] for side in (x, y))
        within = sum(_polynomial(each, each).fill_diagonal_(0).sum() for each in (a, b)) / (size * (size - 1))
        found.append(float(within - 2 * _polynomial(a, b).mean()))
    return float(np.mean(found))


def kid_replicates(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, other_counts: np.ndarray,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """The unbiased squared MMD of all images, in which image i occurs counts[b,i] times: float64 (B,).

    A pair of copies of one image is left out, as an image and itself are.

    Args:
        counts, other_counts: (B,N) and (B,M), one row for each resample of the two sides.
    """
    found = np.zeros(len(counts))
    for side, times in ((first, counts), (second, other_counts)):
        square = np.asarray(side, np.float64)
        own = (np.square(square).sum(axis=1) / side.shape[1] + 1) ** 3
        sums = kernel_sums(side, side, _polynomial, times, times, device) - np.square(times) @ own
        found += sums / (times.sum(axis=1) ** 2 - np.square(times).sum(axis=1))
    across = kernel_sums(first, second, _polynomial, counts, other_counts, device)
    return found - 2 * across / (counts.sum(axis=1) * other_counts.sum(axis=1))


def cmmd(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray | None = None, other_counts: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """1000 times the squared MMD (V-statistic, as in the reference implementation) of unit-length features.

    first, second: (N,D) and (M,D) of any length, scaled to length 1 here. counts: as in `kid_replicates`; None = each
    image once. Returns: float64 (B,).
    """
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    counts = np.ones((1, len(first))) if counts is None else counts
    other_counts = np.ones((1, len(second))) if other_counts is None else other_counts
    found = np.zeros(len(counts))
    for (x, times), (y, others), weight in (
        ((first, counts), (first, counts), 1), ((second, other_counts), (second, other_counts), 1),
        ((first, counts), (second, other_counts), -2),
    ):  # fmt: skip
        found += weight * kernel_sums(x, y, _gaussian, times, others, device) / (times.sum(1) * others.sum(1))
    return SCALE * found


def kernel_sums(
    first: np.ndarray, second: np.ndarray, kernel: Kernel, counts: np.ndarray, other_counts: np.ndarray,
    device: torch.device | str = "cpu", block: int = BLOCK,
) -> np.ndarray:
    """sum_ij counts[b,i] kernel(first_i, second_j) other_counts[b,j]: float64 (B,).

    One pass over the pairs serves all B rows of the counts (B,N) and (B,M).
    """
    total = torch.zeros(len(counts), dtype=torch.float64, device=device)

    def parts(side: np.ndarray, times: np.ndarray, start: int) -> list[Tensor]:
        taken = side[start : start + block], times[:, start : start + block]
        return [torch.as_tensor(each).to(device, torch.float64) for each in taken]

    for top in range(0, len(first), block):
        x, left = parts(first, counts, top)
        for start in range(0, len(second), block):
            y, right = parts(second, other_counts, start)
            total += ((left @ kernel(x, y)) * right).sum(dim=1)
    return total.cpu().numpy()


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x-y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
    return torch.exp(-squares / (2 * SIGMA**2))
