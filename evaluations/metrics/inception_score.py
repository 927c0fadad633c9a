"""Inception score over class probabilities of any classifier.

Source: Salimans et al., Improved techniques for training GANs (2016); split rule of the ADM evaluator.
"""

from __future__ import annotations

import numpy as np

__all__ = ["inception_score"]


def inception_score(probabilities: np.ndarray, split_size: int = 5000) -> float:
    """Mean over consecutive splits of exp(mean KL(p(y|x) || p(y))).

    The order of the images matters (class-sorted images score wrongly), and a short last split weighs as much as a
    full one: both are the evaluator's rules, kept so that numbers compare. 0 log 0 counts as 0.

    Args:
        probabilities: (N,K), rows sum to one.

    Returns: between 1 and K. Named after its classifier: only with the Inception graph is it the published score.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if len(probabilities) == 0:
        raise ValueError("got no images; the inception score needs at least one")
    scores = []
    for start in range(0, len(probabilities), split_size):
        part = probabilities[start : start + split_size]
        marginal = part.mean(axis=0, keepdims=True)
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores))
