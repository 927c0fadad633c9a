"""Evaluation of samples against as many reference images, as a whole and in its parts.

Plain is what evaluation packages do: an eager network of separate convolution, batch norm and ReLU, applied to both
sides in every evaluation, a matrix square root of the product of the covariances, and a pass over the features for
every distance. Ours is measured in steady state, as in a search over guidance scales: the reference's features exist
from the first evaluation on. It also computes the spatial distance, the inception score, and precision and recall in
float64.
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
from evaluations.c2i.evaluator_torch import Evaluator, default_batch_size
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.inception import InceptionGraph
from evaluations.metrics.precision_recall import precision_recall

__all__ = ["evaluation"]


def evaluation(
    device: torch.device, images: int = 64, features: int = 2048, dim: int = 2048, width: float = 1.0, whole: int = 512
) -> dict[str, Any]:
    """Images per second of a whole evaluation and of the network, and calls per second of the two distances.

    Args:
        whole: images a side of the whole evaluation.
        images: for the network alone.
        features, dim: features a side of the distances, and their length, at most 2048.
        width: of the network's stand-in graph; below 1 only to test this file.
    """
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)).to(device)
    plain = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=False).eval().to(device)
    plain.fc = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_graph(Path(folder) / "graph.pb", width))
        graph = InceptionGraph(path, device)
        files = [Path(folder) / f"{name}.npz" for name in ("reference", "samples")]
        for file in files:
            np.savez(file, rng.integers(0, 256, (whole, 64, 64, 3), dtype=np.uint8))
        evaluator = Evaluator(files[0], path, device)
        together = compare(
            {
                "plain": lambda: _plain_evaluation(plain, files, dim, device),
                "ours": lambda: evaluator.score(files[1]),
            },
            whole, device,
        )
    one, two = (rng.standard_normal((features, dim), np.float32) * rng.uniform(0.1, 1, dim) for _ in range(2))
    return {
        f"{whole} samples beside {whole} reference images": together,
        f"Inception features, {images} images": compare(
            {
                "plain": partial(_plain_features, plain, pixels),
                "ours": lambda: [graph.features(part) for part in pixels.split(default_batch_size(device))],
            },
            images, device,
        ),
        f"Frechet distance, {features} features a side": compare(
            {"plain": partial(_plain_frechet, one, two), "ours": lambda: frechet_distance(fit(one), fit(two))},
            1, device,
        ),
        f"precision and recall, {features} features a side": compare(
            {"plain": partial(_plain_precision_recall, one, two), "ours": lambda: precision_recall(one, two)}, 1, device
        ),
    }


def _plain_evaluation(network: torch.nn.Module, files: list[Path], dim: int, device: torch.device) -> tuple[Any, ...]:
    found = []
    for file in files:
        pixels = torch.from_numpy(np.load(file, allow_pickle=False)["arr_0"]).to(device)
        parts = [_plain_features(network, part)[:, :dim].cpu().numpy() for part in pixels.split(64)]
        found.append(np.concatenate(parts))
    return _plain_frechet(*found), *_plain_precision_recall(*found)


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
