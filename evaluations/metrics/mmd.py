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

__all__ = ["BLOCK", "SUBSETS", "SUBSET_SIZE", "cmmd", "cmmd_replicates", "kernel_sums", "kid", "kid_replicates"]

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
    rng, found = np.random.RandomState(SUBSET_SEED), []
    for _ in range(1 if size == len(x) == len(y) else SUBSETS):  # one subset is the whole, and so are all others
        a, b = (side[torch.from_numpy(rng.choice(len(side), size, replace=False))] for side in (x, y))
        within = sum(_polynomial(each, each).fill_diagonal_(0).sum() for each in (a, b)) / (size * (size - 1))
        found.append(float(within - 2 * _polynomial(a, b).mean()))
    return float(np.mean(found))


def cmmd(first: np.ndarray, second: np.ndarray, device: torch.device | str = "cpu") -> float:
    """1000 times the squared MMD (V-statistic, as in the reference implementation) of features (N,D) and (M,D).

    Features are scaled to length 1 here.
    """
    x, y = _unit(first), _unit(second)
    pairs = ((x, x, 1), (y, y, 1), (x, y, -2))
    ones = {len(side): np.ones((1, len(side))) for side in (x, y)}
    return SCALE * sum(
        weight * kernel_sums(a, b, _gaussian, ones[len(a)], ones[len(b)], device)[0] / (len(a) * len(b))
        for a, b, weight in pairs
    )


def kid_replicates(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """The unbiased squared MMD with KID's kernel of all images in each resample: float64 (B,).

    Args:
        first, second: features (N,D); row i of both belongs to image i.
        counts: (B,N), how often each image occurs. A pair of copies of one image counts as an image and itself do.
    """
    within = [_means(side, side, _polynomial, counts, device)[0] for side in (first, second)]
    apart, own = _means(first, second, _polynomial, counts, device)
    return sum(within) - 2 * _all_pairs(apart, own, len(first))


def cmmd_replicates(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, device: torch.device | str = "cpu"
) -> np.ndarray:
    """`cmmd` in each resample: float64 (B,); arguments as for `kid_replicates`."""
    x, y = _unit(first), _unit(second)
    pairs = ((x, x, 1), (y, y, 1), (x, y, -2))
    terms = [weight * _all_pairs(*_means(a, b, _gaussian, counts, device), len(x)) for a, b, weight in pairs]
    return SCALE * sum(terms)


def _means(
    first: np.ndarray, second: np.ndarray, kernel: Kernel, counts: np.ndarray, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's mean over pairs of different images, and over pairs of an image and itself: (B,) each."""
    given = zip(*(torch.as_tensor(side).to(device, torch.float64).split(256) for side in (first, second)), strict=True)
    own = torch.cat([kernel(x, y).diagonal() for x, y in given]).cpu().numpy()
    squares, total = np.square(counts), counts.sum(axis=1)
    sums = kernel_sums(first, second, kernel, counts, counts, device) - squares @ own
    return sums / (total**2 - squares.sum(axis=1)), counts @ own / total


def _all_pairs(apart: np.ndarray, own: np.ndarray, images: int) -> np.ndarray:
    """The mean over all pairs, of which one in `images` is an image and itself."""
    return (apart * (images - 1) + own) / images


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


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / D + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x-y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
    return torch.exp(-squares / (2 * SIGMA**2))
