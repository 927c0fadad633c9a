"""An evaluation of 10,000 images from its parts: Inception features, the Frechet distance, precision and recall.

Plain is what evaluation packages do: a convolution, a batch norm and a rectifier after one another in an eager network,
a matrix square root of the product of the covariances, and every distance with its own pass over the features.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from benchmarks.inception_graph import write_graph
from benchmarks.timing import compare
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.inception import InceptionGraph
from evaluations.metrics.precision_recall import precision_recall
from evaluations.twin_job import at_once

__all__ = ["evaluation"]


def evaluation(
    device: torch.device, images: int = 64, features: int = 2048, dim: int = 2048, width: float = 1.0
) -> dict[str, Any]:
    """Images a second of the network, and whole calls of the two distances between `features` features a side.

    Args:
        width: of the network's stand-in graph; below 1 only to test this file.
    """
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)).to(device)
    plain = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False).eval().to(device)
    with tempfile.TemporaryDirectory() as folder:
        graph = InceptionGraph(InceptionGraph.Config(str(write_graph(Path(folder) / "graph.pb", width))), device)
    one, two = (rng.standard_normal((features, dim), np.float32) * rng.uniform(0.1, 1, dim) for _ in range(2))
    return {
        f"Inception features, {images} images": compare(
            partial(_plain_features, plain, pixels),
            lambda: [graph.features(part) for part in pixels.split(at_once(device))],
            images, device,
        ),
        f"Frechet distance, {features} features a side": compare(
            partial(_plain_frechet, one, two), lambda: frechet_distance(fit(one), fit(two)), 1, device
        ),
        f"precision and recall, {features} features a side": compare(
            partial(_plain_precision_recall, one, two), lambda: precision_recall(one, two), 1, device
        ),
    }


@torch.no_grad()
def _plain_features(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return network(F.interpolate(pixels.permute(0, 3, 1, 2).float(), (299, 299), mode="bilinear") / 127.5 - 1)


def _plain_frechet(one: np.ndarray, two: np.ndarray) -> float:
    (mean1, cov1), (mean2, cov2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (one, two))
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real))


def _plain_precision_recall(reference: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    radii = [np.partition(cdist(x, x, "sqeuclidean"), 3, axis=1)[:, 3] for x in (reference, samples)]
    apart = cdist(reference, samples, "sqeuclidean")
    return (apart <= radii[0][:, None]).any(0).mean(), (apart <= radii[1][None]).any(1).mean()
