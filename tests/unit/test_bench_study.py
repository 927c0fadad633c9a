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
        figures[variant] = {"sample fd2@64": distances, "sample fd0@64": [-each for each in distances]}
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
    psnr, ssim = (row["correlations"] for row in found)
    assert psnr["sample fd2"] == pytest.approx({"value": -1, "low": -1, "high": -1}) and found[0]["expected"] == -1
    assert psnr["sample fd0"]["value"] == pytest.approx(1)
    assert ssim["sample fd2"]["high"] - ssim["sample fd2"]["low"] > 0.5
    assert "PSNR | -1.00 [-1.00, -1.00] | +1.00 [+1.00, +1.00]" in (tmp_path / "table.md").read_text()
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


def test_variants_can_be_left_out(tmp_path):
    options = write(tmp_path)
    options.leave_out = ["a", "b"]
    run(options)
    assert json.loads((tmp_path / "correlations.json").read_text())["tokenizers"] == 6
    assert "6 tokenizers of 3 variants (a, b are left out)" in (tmp_path / "table.md").read_text()
    unknown = r"--leave-out got \['f'\]; expected some of a, b"
    for wrong, message in ((["a", "f"], unknown), (["a", "b", "c"], "2 variants")):
        options.leave_out = wrong
        with pytest.raises(UserError, match=message):
            run(options)


def test_a_target_that_was_not_measured_is_named(tmp_path):
    options = write(tmp_path)
    options.targets = ["sample fd2", "sample fd"]
    with pytest.raises(UserError, match=r"--targets got \['sample fd'\]; expected some of sample fd0, sample fd2"):
        run(options)
