"""The seam to the TensorFlow evaluator, which runs in an environment of its own: two `.npz` in, numbers out.

It writes `<samples>.txt` (the five lines every paper's script parses) and `<samples>.json` beside the samples.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from evaluations import record

__all__ = ["NAMES", "evaluate", "five_lines", "parse"]

SCRIPT = Path(__file__).parent / "c2i" / "evaluator.py"

NAMES = {
    "Inception Score": "inception_score", "FID": "fid", "sFID": "sfid", "Precision": "precision", "Recall": "recall",
}
"""Labels of the five lines -> our keys."""


def evaluate(
    reference: str | Path, samples: str | Path, python: str | Path, graph: str | Path | None = None
) -> dict[str, Any]:
    """Inception score, FID, sFID, precision and recall of `samples` against `reference` (both `.npz`), and whatever
    else the evaluator's JSON tells of how they were made.

    Args:
        python: the interpreter of the evaluation environment (EVAL_PYTHON_PATH).
        graph: the Inception graph; None = where the evaluator looks by itself.

    Raises: UserError when a file or the interpreter is missing, or the evaluator fails.
    """
    reference, samples = Path(reference).resolve(), Path(samples).resolve()
    for path, flag in ((reference, "--gt-npz-path"), (samples, "--sample-dir")):
        if not path.is_file():
            raise UserError(f"the evaluator needs {str(path)!r}, which does not exist; check {flag}")
    text = samples.with_suffix(".txt")
    # What an earlier run left must not be read as this run's answer.
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
        raise UserError(f"the evaluator ended well but wrote no {str(text)!r}; is {str(SCRIPT)!r} ours?")
    as_json = samples.with_suffix(".json")
    if as_json.is_file():
        figures = json.loads(as_json.read_text())
        record.write_json(as_json, {**figures, **record.environment()})
        return figures
    return parse(text.read_text())


def five_lines(figures: Mapping[str, float | None]) -> str:
    """The text that every paper's script parses; a figure that so few images do not have is `nan`."""
    return "".join(f"{label}: {'nan' if figures[key] is None else figures[key]}\n" for label, key in NAMES.items())


def parse(text: str) -> dict[str, float]:
    """The five lines `Name: value`; other lines are ignored.

    Raises: UserError when one of the five is missing or not a number.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon and label.strip() in NAMES:
            try:
                found[NAMES[label.strip()]] = float(value)
            except ValueError as error:
                raise UserError(f"the evaluator wrote {line.strip()!r}; expected a number") from error
    missing = [label for label, key in NAMES.items() if key not in found]
    if missing:
        raise UserError(f"the evaluator's text lacks {', '.join(missing)}; evaluate again")
    return found
