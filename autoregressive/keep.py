"""Which codes of a real image survive while a generator rewrites the others.

sigma is the share that survives: 1 leaves the reconstruction, 0 a free sample. Source: RobusTok's
preservation ratio (arXiv 2509.12474), spec robustok 4.1; prefix and schedule: spec 7.3, for ordered tokens, where one
early code moves the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from common.errors import UserError

__all__ = ["POLICIES", "draw_keep"]


def _bernoulli(sigma: float, num_tokens: int) -> np.ndarray:
    return np.full(num_tokens, sigma)


def _prefix(sigma: float, num_tokens: int) -> np.ndarray:
    return (np.arange(num_tokens) < math.ceil(sigma * num_tokens)).astype(np.float64)


def _schedule(sigma: float, num_tokens: int) -> np.ndarray:
    """Falls linearly from min(1, 2 sigma), so that the mean is sigma."""
    first = min(1.0, 2 * sigma)
    return np.linspace(first, 2 * sigma - first, num_tokens)


POLICIES: dict[str, Callable[[float, int], np.ndarray]] = {
    "bernoulli": _bernoulli, "prefix": _prefix, "schedule": _schedule,
}  # fmt: skip
"""Policy -> (sigma, L) -> the probability of keeping each of L codes."""


def draw_keep(policy: str, sigma: float, num_tokens: int, seed: int, ids: np.ndarray) -> np.ndarray:
    """bool (n, num_tokens) for images `ids` (n,) int64; a row depends on the seed and its id alone.

    Raises: UserError for an unknown policy or a sigma outside [0, 1].
    """
    if policy not in POLICIES:
        raise UserError(f"--keep got {policy!r}; known: {', '.join(POLICIES)}")
    if not 0 <= sigma <= 1:
        raise UserError(f"--sigma is {sigma}; expected a share of kept codes in [0, 1]")
    probabilities = POLICIES[policy](sigma, num_tokens)
    rows = [np.random.Generator(np.random.Philox(key=[seed, int(i) % 2**64])).random(num_tokens) for i in ids]
    return np.stack(rows) < probabilities
