"""FID and its companions by TensorFlow or by torch: same graph, same formulas, and the result says which it was."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from evaluations import adm

__all__ = ["Scores", "choose"]

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

    def __call__(self, samples: Path) -> tuple[dict[str, float], dict[str, Any]]:
        """(figures, what they were made of); also writes `<samples>.txt` and `.json`.

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
        return figures, {key: value for key, value in found.items() if key not in (*METRICS, "flags")}
