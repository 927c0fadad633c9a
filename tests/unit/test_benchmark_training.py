"""The throughput benchmark: a case of it, small, and the figures' relation to one another."""

from __future__ import annotations

import pytest

from benchmarks import training
from common.errors import UserError


def test_a_case_is_measured() -> None:
    found = training.measure_case("quickstart GPT", repeats=2, batch_size=2)
    step = found["step_s"]
    assert step["steps"] == 2 and 0 < step["min"] <= step["median"] <= step["max"]
    assert found["images_per_s"] == pytest.approx(2 / step["median"])
    assert found["tflops"] == pytest.approx(found["gflop_per_image"] * found["images_per_s"] / 1000)
    assert found["mfu"] == pytest.approx(found["tflops"] / found["matrix_tflops"]) and 0 < found["mfu"] < 1.5
    assert found["parameters"] == pytest.approx(1.7e6, rel=0.03)  # as the config's first line says
    assert found["peak_memory_gb"] > found["estimated_memory_gb"]


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown case 'GPT-Z'.*quickstart GPT"):
        training.measure_case("GPT-Z", repeats=1)
