"""Correlations of the bench's columns with the evidence study's samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from studies.bench import BenchStudyConfig, interval, run


def write(tmp_path: Path, variants: str = "abcde", seeds: int = 2) -> BenchStudyConfig:
    """An invented study in which one column follows the samples' distance and one does not."""
    rng, rows, figures = np.random.default_rng(0), [], {}
    for place, variant in enumerate(variants):
        distances = [100.0 * place + seed for seed in range(seeds)]
        figures[variant] = {"sample fd2@64": distances}
        for seed, distance in enumerate(distances):
            values = {"psnr": 30 - distance / 50, "ssim": float(rng.random()), "recall_x": 5.0, "parameters": distance}
            values["ssim"] *= distance > 0  # a figure of zero is measured, too
            rows.append({
                "path": f"evidence/{variant}/seed-{seed}/tokenizer/checkpoints/0001500",
                "tokenizer": variant, "num_tokens": 64,
                "figures": {name: {"value": value} for name, value in values.items()},
            })  # fmt: skip
    columns = ["psnr", "ssim", "recall_x", "parameters"]
    (tmp_path / "bench.json").write_text(json.dumps({"columns": columns, "rows": rows}))
    question = {"num_tokens": [8, 64], "seeds": list(range(seeds))}
    (tmp_path / "evidence.json").write_text(json.dumps({"question": question, "figures": figures}))
    return BenchStudyConfig(
        bench=str(tmp_path / "bench.json"), evidence=str(tmp_path / "evidence.json"), out=str(tmp_path), resamples=50
    )


def test_the_column_that_orders_the_samples_comes_first(tmp_path):
    found = run(write(tmp_path))
    assert [row["name"] for row in found] == ["psnr", "ssim"]  # the others: the same for all, and a cost
    assert found[0]["correlation"] == pytest.approx(-1) and found[0]["expected"] == -1
    assert found[0]["low"] == pytest.approx(-1) and found[1]["high"] - found[1]["low"] > 0.5
    assert "PSNR | -1.00 [-1.00, -1.00]" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "correlations.png").stat().st_size > 1000


def test_seeds_of_a_variant_are_drawn_together():
    values, targets = np.arange(8.0), np.array([1.0, 0, 3, 2, 5, 4, 7, 6])
    low, _ = interval(values, targets, list("aabbccdd"), 200, 0)
    assert low >= -1 and low < 0.8  # one variant drawn alone has the correlation -1


def test_a_tokenizer_of_another_study_is_refused(tmp_path):
    options = write(tmp_path)
    table = json.loads((tmp_path / "bench.json").read_text())
    table["rows"][0]["path"] = "/elsewhere/run"
    (tmp_path / "bench.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"/elsewhere/run.*is not a tokenizer of the evidence study"):
        run(options)


def test_a_target_that_was_not_measured_is_named(tmp_path):
    options = write(tmp_path)
    options.target = "sample fd"
    with pytest.raises(UserError, match="--target got 'sample fd'; expected one of sample fd2"):
        run(options)
