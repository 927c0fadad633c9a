"""CONFIGURATION.md says what the schemas say."""

from __future__ import annotations

import re
from pathlib import Path

from evaluations import configuration

ROOT = Path(__file__).parents[2]


def test_the_file_is_current() -> None:
    current = configuration.reference()
    assert (ROOT / "CONFIGURATION.md").read_text() == current, "run: python -m evaluations.configuration"


def test_every_job_is_in_it() -> None:
    jobs = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("common", "tokenizer", "autoregressive", "evaluations")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^    (config\.)?main\(main\)", path.read_text(), re.MULTILINE)
    }
    assert jobs == {*configuration.JOBS}
