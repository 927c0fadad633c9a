"""FID and its companions by TensorFlow or by torch: same graph, same formulas, and the result says which it was."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import sha256
from common.errors import UserError
from evaluations import adm, npz
from evaluations.c2i.evaluator import UnusableError, check_pair, read_about
from evaluations.metrics.inception import graph_file
from evaluations.record import Features, files_key

__all__ = ["Scores", "choose", "question"]

PROBE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"

METRICS = (*adm.NAMES.values(), "precision_float64", "recall_float64")


def choose(engine: str, python: str) -> str:
    """"tensorflow" or "torch": what was asked for, or with "auto" TensorFlow where `python` has it.

    Raises: UserError for any other word.
    """
    if engine in ("tensorflow", "torch"):
        return engine
    if engine != "auto":
        raise UserError(f"--engine got {engine!r}; expected auto, tensorflow or torch")
    try:
        found = subprocess.run([python, "-c", PROBE], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    return "tensorflow" if found else "torch"


def question(
    reference: str, samples: str, kind: str | None, engine: str, python: str, graph: str | None
) -> dict[str, str]:
    """What FID and its companions depend on besides the samples: engine, graph and reference.

    Args:
        samples, kind: where they will lie, and whether they are "reconstruction" or "generation" (None = unknown):
            what the evaluators would refuse at the end is refused before any work.

    Raises: UserError when the reference or the graph is missing, or the reference is not for this kind.
    """
    npz.header(reference, any_type=True)
    try:
        check_pair(reference, read_about(reference), samples, {"kind": kind})
    except UnusableError as error:
        raise UserError(f"--gt-npz-path: {error}") from error
    return {
        "engine": choose(engine, python), "inception_sha256": sha256(graph_file(graph)),
        "reference": files_key([reference]),
    }


class Scores:
    """Scores sample files against one reference; the torch engine measures the reference only once.

    Args:
        engine: "tensorflow" or "torch" (see `choose`).
        python: the interpreter that has TensorFlow.
        graph: the Inception graph; None = the cache folder.
    """

    def __init__(self, reference: str, engine: str, python: str, graph: str | None, device: torch.device) -> None:
        self.reference, self.engine, self.python, self.graph, self.device = reference, engine, python, graph, device
        self._evaluator: Any = None

    def __call__(self, samples: Path) -> tuple[dict[str, float | None], Features, list[str]]:
        """(figures, what they were made of, flags); also writes `<samples>.txt` and `.json`, which say more.

        Raises: UserError when something is missing or the evaluator fails.
        """
        if self.engine == "tensorflow":
            found = adm.evaluate(self.reference, samples, self.python, self.graph)
        else:
            from evaluations import twin_job

            self._evaluator = self._evaluator or twin_job.Evaluator(self.reference, self.graph, self.device)
            found = self._evaluator.score(samples)
            twin_job.write(samples, found)
        figures = {key: found[key] for key in METRICS if key in found}
        names = ("sha256", "images", "statistics", "about")
        reference = {"path": self.reference, **{name: found[f"reference_{name}"] for name in names}}
        return figures, Features(found["engine"], found["graph_sha256"], reference), found["flags"]
