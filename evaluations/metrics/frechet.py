"""Frechet distance between Gaussians fitted to features, exact also for rank-deficient covariances.

    d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

With S = L L^T the last trace is the sum of the singular values of L1^T L2. The factors come from a symmetric
eigendecomposition, so nothing fails or drifts when there are fewer images than dimensions (a matrix square root
does), and null directions are dropped, which also makes it faster.
Source: Heusel et al., GANs trained by a two time-scale update rule (2017), eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Gaussian", "Moments", "fit", "frechet_distance"]

NOT_PSD = 1e-6
"""A covariance whose smallest eigenvalue is below -NOT_PSD times the largest is not a covariance."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D,D), float64; `known_factor` (D,R) spares the eigendecomposition where it is known."""

    mean: np.ndarray
    covariance: np.ndarray
    known_factor: np.ndarray | None = None

    @cached_property
    def factor(self) -> np.ndarray:
        """L (D, rank) with L L^T = covariance; computed once, so a reference is factored once.

        Raises: ValueError for non-finite values or a matrix that is not positive semidefinite.
        """
        if self.known_factor is not None:
            return self.known_factor
        covariance = np.atleast_2d(np.asarray(self.covariance, np.float64))
        if not (np.isfinite(covariance).all() and np.isfinite(self.mean).all()):
            raise ValueError("the feature statistics hold NaN or infinity; the features of some image are not finite")
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        top = max(values[-1], 0.0)
        if values[0] < -NOT_PSD * top:
            raise ValueError(f"eigenvalues {values[0]:.3g} to {top:.3g}: not a covariance (not positive semidefinite)")
        kept = values > top * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])


class Moments:
    """Streaming mean and unbiased covariance in float64; memory does not grow with the number of images.

    Up to as many images as there are features, the features themselves are kept: they are a small factor of the
    covariance. Beyond that, sums are taken around the first images' mean, so features far from zero lose no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[np.ndarray] = []
        self._shift: np.ndarray | None = None

    def update(self, features: np.ndarray) -> Moments:
        """Add features (B,D)."""
        self._rows.append(np.asarray(features, np.float64))
        self.count += len(features)
        if self.count > features.shape[1]:
            self._add_rows()
        return self

    def _add_rows(self) -> None:
        """Move the features that are kept into the sums."""
        if not self._rows:
            return
        rows, self._rows = np.concatenate(self._rows), []
        if self._shift is None:
            self._shift = rows.mean(axis=0)
            self._sum = np.zeros_like(self._shift)
            self._outer = np.zeros((len(self._shift), len(self._shift)))
        centred = rows - self._shift
        self._sum += centred.sum(axis=0)
        self._outer += centred.T @ centred

    def merge(self, other: Moments) -> Moments:
        """Add another process's moments."""
        for rows in other._rows:
            self.update(rows)
        if other._shift is None:
            return self
        self._add_rows()
        if self._shift is None:
            self._shift, self._sum, self._outer = other._shift, other._sum.copy(), other._outer.copy()
        else:
            apart = other._shift - self._shift
            across = np.outer(other._sum, apart)
            self._outer += other._outer + across + across.T + other.count * np.outer(apart, apart)
            self._sum += other._sum + other.count * apart
        self.count += other.count
        return self

    def gaussian(self) -> Gaussian:
        """Raises: ValueError for fewer than 2 images."""
        if self.count < 2:
            raise ValueError(f"got {self.count} images; a covariance needs at least 2")
        if self._shift is None:
            rows = np.concatenate(self._rows)
            mean = rows.mean(axis=0)
            factor = (rows - mean).T / np.sqrt(self.count - 1)
            return Gaussian(mean, factor @ factor.T, factor)
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self._shift + mean, covariance)


def fit(features: np.ndarray) -> Gaussian:
    """The Gaussian of features (N,D): mean and unbiased covariance.

    Raises: ValueError for fewer than 2 images or features that are not finite.
    """
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise ValueError("some features are NaN or infinite")
    return Moments().update(features).gaussian()


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians (what is called FID with Inception features).

    Raises: ValueError for different dimensions, non-finite statistics or an indefinite covariance.
    """
    mean1, mean2 = np.atleast_1d(first.mean).astype(np.float64), np.atleast_1d(second.mean).astype(np.float64)
    if mean1.shape != mean2.shape:
        raise ValueError(f"the two sides have {len(mean1)} and {len(mean2)} features; use one extractor for both")
    factor1, factor2 = first.factor, second.factor
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum() if factor1.size and factor2.size else 0.0
    distance = ((mean1 - mean2) ** 2).sum() + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(distance), 0.0)
