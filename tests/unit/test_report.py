"""The report reads what the stages wrote and needs no other file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from studies.report import ReportConfig, run

CLASSES = ["cat", "dog & <bird>"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of a small invented run: two classes, two previews, token counts 2 and 4."""
    rng = np.random.default_rng(0)
    root = tmp_path / "run"
    previews = root / "reconstruction" / "previews"
    previews.mkdir(parents=True)
    for index in (1, 5):
        for suffix in ("_gt", "_tokens0002", "_tokens0004"):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(previews / f"{index:06d}{suffix}.png")
    figures = {"psnr": 20.0, "ssim": 0.5}
    write(root / "reconstruction" / "results.json", {
        "codes": {"images": 12, "codebook_usage": 0.6}, "tokens": {"2": figures, "4": {**figures, "psnr": 22.5}},
    })
    distances = {"samples": 50.0, "reconstructions": 70.0, "train": 20.0}
    write(root / "drawings" / "results.json", {
        "question": {"cfg_scale": 1.5, "num_tokens": 2, "per_class": 2}, "classes": CLASSES, "class_accuracy": 0.9,
        "probe_accuracy": 0.97, "near_copies": 0.031, "fd": {"net_a": distances, "net_b": distances},
        "images": {"samples": 10, "held_out": 12}, "environment": {"torch": "2"},
    })
    pixels = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in {
        "prefixes": (1, 4, 16, 16, 3), "samples": (4, 16, 16, 3), "nearest": (4, 16, 16, 3),
        "guided": (2, 2, 16, 16, 3),
    }.items()}  # fmt: skip
    np.savez(root / "drawings" / "pictures.npz", labels=np.array([0, 0, 1, 1]), scales=np.array([1.0, 4.0]), **pixels)
    baselines = {"bilinear_8x8_psnr": 12.5, "kmeans_patch_vq_psnr": 18.9, "question": {"num_codes": 1024}}
    write(root / "baselines.json", baselines)
    write(root / "stages.json", {"seconds": {"tokenizer": 300.0, "gpt": 120.0}, "peak_rss_gb": 2.5})
    log(root / "tokenizer", [{"train/loss": 1.0, "train/loss_recon": 0.5}, {"val/psnr_4": 12.0}])
    log(root / "gpt", [{"train/loss": 6.9}, {"val/loss": 6.8}])
    return root


def write(path: Path, body: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def log(folder: Path, lines: list[dict]) -> None:
    folder.mkdir(parents=True)
    text = "".join(json.dumps({"step": 10 * (1 + number), **line}) + "\n" for number, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text(text)


def test_metrics_have_the_documented_keys(results: Path) -> None:
    run(ReportConfig(results=str(results)))
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics["reconstruction"]) == {"2", "4"} and metrics["reconstruction"]["4"]["psnr"] == 22.5
    assert set(metrics["baselines"]) == {"bilinear_8x8_psnr", "kmeans_patch_vq_psnr"}
    assert {"class_accuracy": 0.9, "probe_accuracy": 0.97, "fd": 50.0, "near_copies": 0.031}.items() <= (
        metrics["generation"].items()
    )
    assert metrics["codebook_usage"] == 0.6 and metrics["peak_rss_gb"] == 2.5
    assert metrics["seconds"] == {"tokenizer": 300.0, "gpt": 120.0}


def test_the_page_is_self_contained_and_escaped(results: Path) -> None:
    run(ReportConfig(results=str(results), title="Tokens & <things>", credit="somebody"))
    page = (results / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * 3 + 1 + 1 + 4 * 2 + 2 * 2 + 2  # previews, strip, quality, samples, guidance, plots
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "dog &amp; &lt;bird&gt;" in page and "Tokens &amp; &lt;things&gt;" in page and "<bird>" not in page
    assert "22.50" in page and "3.1%" in page and "somebody" in page


def test_a_missing_stage_is_named(results: Path) -> None:
    (results / "baselines.json").unlink()
    with pytest.raises(UserError, match=r"baselines\.json.*run the quickstart"):
        run(ReportConfig(results=str(results)))
