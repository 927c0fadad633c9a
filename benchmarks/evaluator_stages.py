"""One engine of the evaluator, stage by stage, on one file of images; prints one line of JSON.

    python benchmarks/evaluator_stages.py torch|tensorflow GRAPH.pb IMAGES.npz

Run by `benchmarks.evaluator` with the Python that has the engine. The network sees the images once: the reference's
features, which every evaluation needs as well, are these plus noise, in another order.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


class Stages:
    """Seconds of each named stage, and the process's peak memory once it has ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.peak_mb[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return result


def other_side(pool: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.permutation(pool) + 0.1 * rng.standard_normal(pool.shape, np.float32)


def torch_engine(stages: Stages, graph: Path, images: Path) -> int:
    from evaluations.twin_job import Evaluator

    from common import npz
    from evaluations.metrics.frechet import fit, frechet_distance
    from evaluations.metrics.inception_score import inception_score
    from evaluations.metrics.precision_recall import precision_recall

    # A reference of few images: only its network is needed here.
    small = images.with_name("small.npz")
    np.savez(small, arr_0=next(npz.stream(images, 8)))
    evaluator = stages("start", lambda: Evaluator(small, str(graph)))
    found = stages("features_and_spatial_moments", lambda: evaluator.activations(images))
    reference = other_side(found.pool)
    stages("inception_score", lambda: inception_score(found.probabilities))
    stages("fid_from_features", lambda: frechet_distance(fit(found.pool), fit(reference)))
    stages("precision_recall", lambda: precision_recall(reference, found.pool, exact=False))
    stages("precision_recall_float64", lambda: precision_recall(reference, found.pool))
    return len(found.pool)


def tensorflow_engine(stages: Stages, graph: Path, images: Path) -> int:
    sys.path.insert(0, str(ROOT / "evaluations" / "c2i"))
    import evaluator

    with stages("start", lambda: evaluator.Engine(graph)) as engine:
        pool, probabilities, _ = stages(
            "features_and_spatial_moments", lambda: evaluator.activations(engine, images)
        )
        reference = other_side(pool)
        stages("inception_score", lambda: evaluator.inception_score(probabilities))
        stages("fid_from_features", lambda: evaluator.frechet(evaluator.fit(pool), evaluator.fit(reference)))
        stages("precision_recall", lambda: evaluator.precision_recall(reference, pool, engine.distances))
        exact = evaluator.distances_float64
        stages("precision_recall_float64", lambda: evaluator.precision_recall(reference, pool, exact))
    return len(pool)


ENGINES = {"torch": torch_engine, "tensorflow": tensorflow_engine}


def main() -> None:
    name, graph, images = sys.argv[1:]
    stages = Stages()
    count = ENGINES[name](stages, Path(graph), Path(images))
    print(json.dumps({
        "images": count, "images_per_s": round(count / stages.seconds["features_and_spatial_moments"], 2),
        "seconds": stages.seconds, "peak_mb": stages.peak_mb,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
