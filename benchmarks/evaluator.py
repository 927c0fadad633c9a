"""Both evaluation engines on 10,000 images of 64x64: seconds of every stage and peak memory.

    python -m benchmarks.evaluator [--images 10000] [--threads 2] [--engine torch] [--out FILE]

Each engine runs in a fresh process with a graph of the genuine file's size (random weights: figures mean nothing, costs
are the same). 10,000 images take six to nine minutes an engine on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inception_graph import write_graph
from common.npz import NpzWriter

__all__ = ["ORIGINAL", "run"]

ROOT = Path(__file__).parents[1]
PYTHONS = {"torch": sys.executable, "tensorflow": str(ROOT / ".venv-eval" / "bin" / "python")}

ORIGINAL = {
    "images_per_s": 9.85,
    "seconds": {
        "features_and_spatial_moments": 10_000 / 9.85, "fid_from_features": 1.2 + 9.1, "precision_recall": 12.8,
    },
    "peak_mb": 2700,
}
"""The original evaluator on 10,000 images of a two-core machine under some load, TensorFlow 2.21; its peak without, and
3,300 MB while, the network runs. Its `precision_recall` is the half-precision one alone."""


def run(
    images: int = 10_000, size: int = 64, threads: int = 2, width: float = 1.0, engine: str | None = None
) -> dict[str, Any]:
    """Measure every engine that is installed.

    Args:
        engine: this one only.
        width: of the stand-in graph; below 1 only to test this file.
    """
    found: dict[str, Any] = {
        "machine": {"processor": platform.machine(), "threads": threads}, "images": images, "size": size,
        "original": ORIGINAL,
    }
    with tempfile.TemporaryDirectory() as folder:
        graph = write_graph(Path(folder) / "graph.pb", width)
        packed = _write_images(Path(folder) / "images.npz", images, size)
        for name, python in PYTHONS.items():
            if Path(python).exists() and engine in (None, name):
                found[name] = _measure(name, python, graph, packed, threads)
    return found


def _measure(name: str, python: str, graph: Path, packed: Path, threads: int) -> dict[str, Any]:
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    environment = os.environ | dict.fromkeys(variables, str(threads))
    words = [python, str(ROOT / "benchmarks" / "evaluator_stages.py"), name, str(graph), str(packed)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _write_images(path: Path, count: int, size: int) -> Path:
    """Coarse random colours under pixel noise; written in pieces."""
    rng = np.random.default_rng(0)
    writer = NpzWriter(path, count, (size, size))
    for start in range(0, count, 500):
        number = min(500, count - start)
        coarse = rng.integers(0, 200, (number, 4, 4, 3)).repeat(size // 4, axis=1).repeat(size // 4, axis=2)
        writer.write((coarse + rng.integers(0, 56, (number, size, size, 3))).astype(np.uint8))
    writer.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "evaluator.json")
    parser.add_argument("--engine", choices=PYTHONS, help="measure this one only; what the file says of others stays")
    arguments = parser.parse_args()
    found = run(arguments.images, threads=arguments.threads, engine=arguments.engine)
    if arguments.engine and arguments.out.is_file():
        found = json.loads(arguments.out.read_text()) | found
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
