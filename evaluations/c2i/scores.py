"""The ADM evaluator behind the jobs, in TensorFlow or in torch: same graph, same formulas; results name the engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from common import npz
from common.checkpoint import sha256
from common.errors import UserError
from evaluations import record
from evaluations.c2i import evaluator_torch
from evaluations.c2i.evaluator import LINES, UnusableError, check_pair, read_about
from evaluations.metrics.inception import graph_file
from evaluations.record import Features, files_key

SCRIPT = Path(__file__).with_name("evaluator.py")


def evaluate(
    reference: str | Path, samples: str | Path, python: str | Path, graph: str | Path | None = None
) -> dict[str, Any]:
    """All figures of `samples` against `reference` (both `.npz`) by the TensorFlow evaluator, with its other output.

    Args:
        python: the interpreter of the evaluation environment (EVAL_PYTHON_PATH).
        graph: the Inception graph; None = the cache folder.

    Raises: UserError when a file or the interpreter is missing, or the evaluator fails.
    """
    reference, samples = Path(reference).resolve(), Path(samples).resolve()
    for path, flag in ((reference, "--gt-npz-path"), (samples, "--sample-dir")):
        if not path.is_file():
            raise UserError(f"the evaluator needs {str(path)!r}, which does not exist; check {flag}")
    text = samples.with_suffix(".txt")
    # Files of an earlier run must not be taken for the result of this one.
    for stale in (text, samples.with_suffix(".json")):
        stale.unlink(missing_ok=True)
    command = [str(python), str(SCRIPT), str(reference), str(samples)]
    command += ["--inception-path", str(graph)] if graph else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"the evaluator's Python {str(python)!r} does not start ({error.strerror}); make it with "
            "'bash env_install.sh --eval' and pass --eval-python-path (or export EVAL_PYTHON_PATH)"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"the evaluator ended with status {done.returncode}: {last} (command: {' '.join(command)})")
    if not text.is_file():
        raise UserError(f"the evaluator wrote no {str(text)!r}; is {str(SCRIPT)!r} the script of this repository?")
    as_json = samples.with_suffix(".json")
    if as_json.is_file():
        figures = json.loads(as_json.read_text())
        record.write_json(as_json, {**figures, **record.environment()})
        return figures
    return parse(text.read_text())


def parse(text: str) -> dict[str, float]:
    """The five lines `Name: value`; other lines are ignored.

    Raises: UserError when one of the five is missing or not a number.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon and label.strip() in LINES:
            try:
                found[LINES[label.strip()]] = float(value)
            except ValueError as error:
                raise UserError(f"the evaluator wrote {line.strip()!r}; expected a number") from error
    missing = [label for label, key in LINES.items() if key not in found]
    if missing:
        raise UserError(f"the evaluator's text lacks {', '.join(missing)}; evaluate again")
    return found


PROBE = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"

METRICS = (*LINES.values(), "precision_float64", "recall_float64")


def choose(engine: str, python: str) -> str:
    """"tensorflow" or "torch"; "auto" is TensorFlow if `python` has it.

    Raises: UserError for any other engine.
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
    """What the figures depend on besides the samples: engine, graph and reference.

    Args:
        samples, kind: path of the samples, and "reconstruction" or "generation" (None = unknown). Pairs that the
            evaluators would refuse are refused here, before any work.

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
        """(figures, network and reference, flags); also writes all output to `<samples>.txt` and `<samples>.json`.

        Raises: UserError when something is missing or the evaluator fails.
        """
        if self.engine == "tensorflow":
            found = evaluate(self.reference, samples, self.python, self.graph)
        else:
            self._evaluator = self._evaluator or evaluator_torch.Evaluator(self.reference, self.graph, self.device)
            found = self._evaluator.score(samples)
            evaluator_torch.write(samples, found)
        figures = {key: found[key] for key in METRICS if key in found}
        names = ("sha256", "images", "statistics", "about")
        reference = {"path": self.reference, **{name: found[f"reference_{name}"] for name in names}}
        return figures, Features(found["engine"], found["graph_sha256"], reference), found["flags"]
