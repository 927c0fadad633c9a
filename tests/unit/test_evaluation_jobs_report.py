"""The report: reads what the stages wrote, judges it, and loads nothing from elsewhere."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.npz import NpzWriter
from studies.report import ReportConfig, run

CLASSES = ["cat", "dog & <bird>"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of a small invented run: two classes, three previews, token counts 2 and 4."""
    rng = np.random.default_rng(0)
    root = tmp_path / "run"
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
    previews = root / "reconstruction" / "previews"
    previews.mkdir(parents=True)
    for index in (1, 5, 9):
        for suffix in ("_gt", "_tokens0002", "_tokens0004"):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(previews / f"{index:06d}{suffix}.png")
    Image.fromarray(rng.integers(0, 256, (16, 48, 3), np.uint8)).save(previews / "grid.png")

    samples = root / "generation" / "point"
    samples.mkdir(parents=True)
    np.save(samples / "labels.npy", np.arange(10) % 2)
    writer = NpzWriter(samples.with_suffix(".npz"), 10, (16, 16))
    writer.write(rng.integers(0, 256, (10, 16, 16, 3), np.uint8))
    writer.close()

    figures = {"psnr": 20.0, "ssim": 0.5, "ssim_data_range_2": 0.6, "some_distance": 0.4, "fd_some_net": 90.0}
    write(root / "reconstruction" / "results.json", {
        "question": {"perceptual": {"name": "some_distance"}, "frechet": "fd_some_net", "tokenizer": hashed("aaaa")},
        "environment": {"git_commit": "abc", "torch": "2"}, "flags": ["few images"],
        "codes": {"images": 12, "codebook_usage": 0.6, "codebook_perplexity": 9.5, "usage_per_position": [0.1] * 4,
                  "perplexity_per_position": [3.0] * 4},
        "tokens": {"2": figures, "4": {**figures, "psnr": 22.5, "fd_some_net": 60.0}},
    })
    write(root / "generation" / "results.json", {
        "question": {"reference_path": str(tmp_path / "photos"), "frechet": "fd_some_net", "num_images": 10,
                     "num_reference_images": None, "generator": hashed("bbbb"),
                     "guidance": {"scale": 1.5, "schedule": "step"}, "sampling": {"temperature": 0.9}},
        "flags": [], "samples": str(samples.with_suffix(".npz")),
        "metrics": {"fd_some_net": 50.0, "fd_mean_colour": 200.0, "class_accuracy": 0.9, "probe_accuracy": 0.97,
                    "inception_score_some_net": 5.0, "precision_some_net": 0.5, "recall_some_net": 0.4},
    })
    write(root / "baselines.json", {"bilinear_8x8_psnr": 21.0, "kmeans_patch_vq_psnr": 23.0})
    write(root / "stages.json", {"seconds": {"tokenizer": 300.0, "generator": 120.0}, "peak_rss_gb": 2.5})
    log(root / "tokenizer", [{"train/loss": 1.0, "train/loss_recon": 0.5}, {"val/psnr_4": 12.0}])
    log(root / "gpt", [{"train/loss": 6.9}, {"val/loss": 6.8}])
    return root


def hashed(digest: str) -> dict:
    return {"path": "x", "weights_sha256": digest}


def write(path: Path, body: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def log(folder: Path, lines: list[dict]) -> None:
    folder.mkdir(parents=True)
    text = "".join(json.dumps({"step": 10 * (1 + number), **line}) + "\n" for number, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text(text)


def test_metrics_have_the_promised_keys(results):
    run(ReportConfig(results=str(results)))
    metrics = json.loads((results / "metrics.json").read_text())
    assert set(metrics["reconstruction"]) == {"2", "4"}
    assert set(metrics["reconstruction"]["4"]) == {"psnr", "ssim", "perceptual", "fd"}
    assert metrics["reconstruction"]["4"]["fd"] == 60 and metrics["generation"]["fd"] == 50
    assert {"class_accuracy", "probe_accuracy", "fd", "fd_mean_colour"} <= set(metrics["generation"])
    assert set(metrics["baselines"]) == {"bilinear_8x8_psnr", "kmeans_patch_vq_psnr"}
    assert metrics["codebook_usage"] == 0.6 and metrics["peak_rss_gb"] == 2.5
    assert metrics["names"]["fd"] == "fd_some_net"


def test_targets_are_judged_by_their_values(results):
    targets = {t["name"]: t["met"] for t in run(ReportConfig(results=str(results)))["targets"]}
    missed = [name for name, met in targets.items() if not met]
    assert missed == ["... against k-means on raw patches"]  # 22.5 dB where k-means has 23

    generation = results / "generation" / "results.json"
    body = json.loads(generation.read_text())
    body["metrics"] |= {"class_accuracy": 0.69, "fd_some_net": 67.0}
    write(generation, body)
    missed = {t["name"] for t in run(ReportConfig(results=str(results)))["targets"] if not t["met"]}
    assert {"Samples of the class asked for", "Distance of samples, share of mean colours'"} <= missed


def test_the_page_is_self_contained_and_escaped(results):
    run(ReportConfig(results=str(results), samples_per_class=2, title="Tokens & <things>"))
    page = (results / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3 * 3 + 2 * 2 + 4  # previews, samples, figures
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert "dog &amp; &lt;bird&gt;" in page and "Tokens &amp; &lt;things&gt;" in page and "<bird>" not in page
    assert "22.50" in page and "✗ missed" in page and "few images" in page


def test_a_missing_stage_is_named(results):
    (results / "baselines.json").unlink()
    with pytest.raises(UserError, match=r"baselines\.json.*run that stage first"):
        run(ReportConfig(results=str(results)))
