"""Bootstrap over images: resamples, the figures of each, and percentile intervals.

Tokenizers that are measured on the same images share the resamples, so the difference of two of them has an interval of
its own, which is narrower than the intervals of the two figures suggest.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.numerics import numpy_generator
from evaluations.metrics.frechet import Gaussian, fit, frechet_distance

__all__ = ["frechet_replicates", "interval", "mean_replicates", "resamples"]

LEVEL = 0.95


def resamples(images: int, number: int, seed: int, stream: str = "images") -> np.ndarray:
    """How often each image occurs in each resample: int64 (number, images), every row sums to `images`."""
    return numpy_generator(seed, "bootstrap", stream).multinomial(images, [1 / images] * images, size=number)


def mean_replicates(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of values (N,) in each resample: (B,)."""
    return counts @ values / counts.sum(axis=1)


def frechet_replicates(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, other_counts: np.ndarray
) -> np.ndarray:
    """The Frechet distance of features (N,D) and (M,D) in each resample (B,N) and (B,M): (B,).

    A resample has fewer different images, which raises a Frechet distance. Where both sides are resampled alike, as
    originals and their reconstructions are, most of this cancels.
    """
    sides = zip(counts, other_counts, strict=True)
    return np.array([frechet_distance(_resampled(first, a), _resampled(second, b)) for a, b in sides])


def interval(replicates: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The central 95% of the replicates."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(features: np.ndarray, counts: np.ndarray) -> Gaussian:
    """The Gaussian of features in which row i occurs counts[i] times."""
    rows, times = np.asarray(features[counts > 0], np.float64), counts[counts > 0]
    total, width = times.sum(), rows.shape[1]
    if len(rows) > width:
        return fit(np.repeat(rows, times, axis=0))
    mean = times @ rows / total
    factor = ((rows - mean) * np.sqrt(times / (total - 1))[:, None]).T
    return Gaussian(mean, np.empty((0, 0)), factor)
