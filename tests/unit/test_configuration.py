"""CONFIGURATION.md says what the schemas say."""

from __future__ import annotations

from pathlib import Path

from evaluations import configuration

ROOT = Path(__file__).parents[2]


def test_the_file_is_current() -> None:
    current = configuration.reference()
    assert (ROOT / "CONFIGURATION.md").read_text() == current, "run: python -m evaluations.configuration"


def test_every_job_and_part_is_in_it() -> None:
    text = (ROOT / "CONFIGURATION.md").read_text()
    assert {"studies.photos", "tokenizer.train", "autoregressive.train"} <= set(configuration.jobs())
    for heading in (*configuration.jobs(), "tokenizer.quantizers:QUANTIZERS", "autoregressive.models:GENERATORS"):
        assert f"### `{heading}`" in text
    assert "| `optim.lr` | float | `0.0001` | peak learning rate |" in text
