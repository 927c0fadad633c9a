"""Twenty steps of every trainer give the recorded figures. After an intended change: `python -m tests.snapshots --write`."""  # noqa: E501

from __future__ import annotations

import pytest

from tests.snapshots import losses


@pytest.fixture(scope="module")
def measured() -> dict[str, losses.Figures]:
    return losses.measure()


@pytest.mark.parametrize("run", losses.RUNS)
def test_training_logs_the_recorded_figures(run: str, measured: dict[str, losses.Figures]) -> None:
    assert losses.different(measured[run], losses.stored()[run]) == []


def test_a_changed_figure_is_seen() -> None:
    recorded = {"train/loss": [1.0, 2.0]}
    assert losses.different({"train/loss": [1.0, 2.0 + 1e-6]}, recorded) == []
    for changed in ([1.0], [1.0, 2.0001], [float("nan"), 2.0]):
        assert losses.different({"train/loss": changed}, recorded)
    assert losses.different({"train/loss": [1.0, 2.0 + 1e-6]}, recorded, exact=True)
    assert losses.different({}, recorded)
