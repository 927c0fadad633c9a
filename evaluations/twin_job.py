"""What `evaluations.twin` does; `Evaluator` keeps the reference for any number of sample files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import dist
from common.checkpoint import sha256
from common.errors import UserError
from evaluations import adm, npz, record
from evaluations.metrics.frechet import Gaussian, Moments, fit, frechet_distance
from evaluations.metrics.inception import InceptionGraph
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.precision_recall import precision_recall
from evaluations.twin import TwinConfig

__all__ = ["Evaluator", "run"]

FEWEST = 4
"""Precision and recall look at the third neighbour of every image."""


@dataclass(frozen=True)
class Activations:
    """Of one file: `pool` (N,2048) float32, class `probabilities` (N,K), and the Gaussian of the spatial features."""

    pool: np.ndarray
    probabilities: np.ndarray
    spatial: Gaussian


class Evaluator:
    """The network and the reference's activations, computed once.

    Raises: UserError when the graph or the reference is missing or unusable.
    """

    def __init__(
        self, reference: str | Path, graph: str | None = None, device: torch.device | str = "cpu", batch_size: int = 64
    ) -> None:
        self.network = InceptionGraph(InceptionGraph.Config(path=graph), device)
        self.batch_size = batch_size
        self.about = {
            "engine": "torch", "graph_sha256": sha256(self.network.path), "reference_sha256": sha256(reference),
        }
        self._reference = self._activations(reference)
        given = npz.statistics(reference)
        self.about["reference_statistics"] = "in the file" if given else "computed from its images"
        self._pool, self._spatial = (
            (Gaussian(*given[:2]), Gaussian(*given[2:])) if given
            else (fit(self._reference.pool), self._reference.spatial)
        )

    def score(self, samples: str | Path) -> dict[str, Any]:
        """All figures of a sample file, with what they were made of.

        Raises: UserError for unusable files.
        """
        found = self._activations(samples)
        published = precision_recall(self._reference.pool, found.pool, exact=False)
        exact = precision_recall(self._reference.pool, found.pool)
        return {
            "inception_score": inception_score(found.probabilities),
            "fid": frechet_distance(self._pool, fit(found.pool)),
            "sfid": frechet_distance(self._spatial, found.spatial),
            "precision": published.precision, "recall": published.recall,
            "precision_float64": exact.precision, "recall_float64": exact.recall,
            "images": len(found.pool), "reference_images": len(self._reference.pool),
            "samples_sha256": sha256(samples), **self.about, "flags": record.few_images(len(found.pool)),
        }

    def _activations(self, path: str | Path) -> Activations:
        count = npz.header(path, any_type=True).count
        if count < FEWEST:
            raise UserError(f"{str(path)!r} holds {count} images; the evaluator needs at least {FEWEST}")
        pool, probabilities, spatial = [], [], []
        moments = Moments()
        with tqdm(total=count, desc=f"Inception, {Path(path).name}", unit="image", dynamic_ncols=True) as bar:
            for block in npz.stream(path, self.batch_size, any_type=True):
                found = self.network.features(torch.from_numpy(block))
                pool.append(found.pool.cpu().numpy())
                probabilities.append(found.logits.double().softmax(dim=1).float().cpu().numpy())
                # Kept only while they are fewer than their own dimensions; then the exact factor is a small one.
                (spatial.append if count <= found.spatial.shape[1] else moments.update)(found.spatial.cpu().numpy())
                bar.update(len(block))
        gaussian = fit(np.concatenate(spatial)) if spatial else moments.gaussian()
        return Activations(np.concatenate(pool), np.concatenate(probabilities), gaussian)


def run(config: TwinConfig) -> dict[str, Any]:
    """Score one file; write and print the five lines."""
    world = dist.init(config.device)
    evaluator = Evaluator(config.gt_npz_path, config.inception_path, world.device, config.batch_size)
    figures = evaluator.score(config.samples)
    write(config.samples, figures)
    print(adm.five_lines(figures), end="")
    return figures


def write(samples: str | Path, figures: dict[str, Any]) -> None:
    """`<samples>.txt` and `<samples>.json`."""
    Path(samples).with_suffix(".txt").write_text(adm.five_lines(figures))
    record.write_json(Path(samples).with_suffix(".json"), {**figures, **record.environment()})
