"""Data, and uninterrupted runs to compare with, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import jobs


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.make_data(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run that nothing happens to."""
    runs: dict[tuple[str, int, int], Path] = {}

    def find(kind: str, ranks: int, steps: int = 12) -> Path:
        key = (kind, ranks, steps)
        if key not in runs:
            out = tmp_path_factory.mktemp("whole") / kind
            assert jobs.train(kind, data, out, f"run.steps={steps}", ranks=ranks) == [0] * ranks
            runs[key] = out
        return runs[key]

    return find
