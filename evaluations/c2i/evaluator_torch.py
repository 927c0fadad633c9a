"""The ADM evaluator without TensorFlow: the same graph file, formulas and text, computed in torch.

    python -m evaluations.c2i.evaluator_torch --gt-npz-path REF.npz --samples SAMPLES.npz

prints inception score, FID, sFID, precision and recall and writes them to `<samples>.txt` (the papers' five lines) and
`<samples>.json`. Precision and recall are the published kind (half-precision distances); the exact values are reported
beside them as `precision_float64` and `recall_float64`. The evaluation jobs use it as `--engine torch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import config, dist, npz
from common.checkpoint import sha256
from common.config import MISSING, opt
from common.errors import UserError
from evaluations import record
from evaluations.c2i import evaluator as original
from evaluations.metrics.frechet import Gaussian, Moments, fit, frechet_distance
from evaluations.metrics.inception import InceptionGraph
from evaluations.metrics.precision_recall import precision_recall

BLOCK = 64
"""Images read at a time, and per forward pass on a GPU."""


@dataclass(frozen=True)
class Activations:
    """Features of one file: `pool` (N,2048) float32, class `probabilities` (N,K) float32, and the Gaussian of the
    spatial features, None for a single image."""

    pool: np.ndarray
    probabilities: np.ndarray
    spatial: Gaussian | None


def default_batch_size(device: torch.device | str) -> int:
    """Images per forward pass: few on a CPU, where small batches stay in its caches and use little memory."""
    return 4 if torch.device(device).type == "cpu" else BLOCK


class Evaluator:
    """Scores any number of sample files against one reference, whose activations are computed once.

    Args:
        batch_size: images per forward pass; None = `default_batch_size(device)`.

    Raises: UserError when the graph or the reference is missing or unusable.
    """

    def __init__(
        self, reference: str | Path, graph: str | None = None, device: torch.device | str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        self.reference, self.batch_size = reference, batch_size or default_batch_size(device)
        self._reference_about = _read_about(reference)
        self.network = InceptionGraph(graph, device)
        self.about = {
            "engine": "torch", "graph_sha256": sha256(self.network.path), "reference_sha256": sha256(reference),
            "reference_about": self._reference_about,
        }
        self._reference = self.activations(reference)
        given = original.read_statistics(reference)
        if given:
            self._pool, self._spatial = Gaussian(*given[:2]), Gaussian(*given[2:])
        else:
            self._pool, self._spatial = _fit(self._reference.pool), self._reference.spatial
        self.about["reference_statistics"] = None
        if self._pool is not None:
            told = original.describe(self._pool.mean, self._pool.factor, in_file=given is not None)
            self.about["reference_statistics"] = told

    def score(self, samples: str | Path) -> dict[str, Any]:
        """All figures of a sample file, with what they were made of.

        Precision and recall below 4 images, and the distances below 2, are None.

        Raises: UserError for unusable files, and for samples that do not fit this reference (kind or resolution).
        """
        made = _read_about(samples)
        try:
            original.check_pair(self.reference, self._reference_about, samples, made)
        except original.UnusableError as error:
            raise UserError(str(error)) from error
        found = self.activations(samples)
        figures: dict[str, Any] = {
            "inception_score": original.inception_score(found.probabilities),
            "fid": _distance(self._pool, _fit(found.pool)), "sfid": _distance(self._spatial, found.spatial),
        }
        pools = self._reference.pool, found.pool
        enough = min(map(len, pools)) > original.NEIGHBOURS
        for suffix, exact in (("", False), ("_float64", True)):
            result = precision_recall(*pools, exact=exact, device=self.network.device) if enough else None
            figures[f"precision{suffix}"] = result and result.precision
            figures[f"recall{suffix}"] = result and result.recall
        sizes = (list(npz.header(path, any_type=True).size) for path in (samples, self.reference))
        figures |= {"images": len(found.pool), "reference_images": len(self._reference.pool)}
        figures |= dict(zip(("image_size", "reference_image_size"), sizes, strict=True))
        return {
            **figures, "samples_sha256": sha256(samples), "samples_about": made, **self.about,
            "flags": original.weaknesses(figures, self._reference_about, made),
        }

    def activations(self, path: str | Path) -> Activations:
        """The features of a file, streamed: memory grows with the features that are kept, not with the pixels."""
        count, done = npz.header(path, any_type=True).count, 0
        few, moments = [], Moments()
        with tqdm(total=count, desc=f"Inception, {Path(path).name}", unit="image", dynamic_ncols=True) as bar:
            for block in npz.stream(path, BLOCK, any_type=True):
                found = [self.network.features(part) for part in torch.from_numpy(block).split(self.batch_size)]
                logits = torch.cat([part.logits for part in found]).double()
                spatial = torch.cat([part.spatial for part in found]).cpu().numpy()
                if not done:
                    # Allocated once: small arrays that stay alive keep the memory between them from being freed.
                    pool, probabilities = (
                        np.empty((count, kept.shape[1]), np.float32) for kept in (found[0].pool, logits)
                    )
                pool[done : done + len(block)] = torch.cat([part.pool for part in found]).cpu().numpy()
                probabilities[done : done + len(block)] = logits.softmax(dim=1).float().cpu().numpy()
                # With fewer images than dimensions, the features themselves are a factor of the covariance.
                (few.append if count <= spatial.shape[1] else moments.update)(spatial)
                done += len(block)
                bar.update(len(block))
        return Activations(pool, probabilities, _fit(np.concatenate(few)) if few else moments.gaussian())


def _fit(features: np.ndarray) -> Gaussian | None:
    return fit(features) if len(features) > 1 else None


def _distance(first: Gaussian | None, second: Gaussian | None) -> float | None:
    return frechet_distance(first, second) if first and second else None


def _read_about(path: str | Path) -> dict[str, Any]:
    try:
        return original.read_about(path)
    except original.UnusableError as error:
        raise UserError(str(error)) from error


def run(config: EvaluatorConfig) -> dict[str, Any]:
    """Score one file; write and print the five lines."""
    world = dist.init(config.device)
    evaluator = Evaluator(config.gt_npz_path, config.inception_path, world.device, config.batch_size)
    figures = evaluator.score(config.samples)
    write(config.samples, figures)
    print(original.five_lines(figures), end="")
    return figures


def write(samples: str | Path, figures: dict[str, Any]) -> None:
    """`<samples>.txt` and `<samples>.json`."""
    Path(samples).with_suffix(".txt").write_text(original.five_lines(figures))
    record.write_json(Path(samples).with_suffix(".json"), {**figures, **record.environment()})


@dataclass
class EvaluatorConfig:
    gt_npz_path: str = opt(MISSING, "reference .npz: arr_0, and mu, sigma, mu_s, sigma_s where it has them")
    samples: str = opt(MISSING, "sample .npz: arr_0 (N,H,W,3), values 0 to 255")
    inception_path: str | None = opt(None, "the Inception graph; null = the cache folder")
    batch_size: int | None = opt(None, "images at a time; null = 4 on a CPU, 64 on a GPU")
    device: str = opt("auto", "auto | cpu | cuda")


def main() -> None:
    settings = config.parse(EvaluatorConfig, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
