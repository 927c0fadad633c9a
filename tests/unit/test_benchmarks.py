"""The benchmarks run at toy size, and their table says what they found."""

from __future__ import annotations

from pathlib import Path

import torch

from autoregressive.models.gpt import GPT
from benchmarks import evaluation, run, sampling, tokenizing, training
from benchmarks.plain_sampler import plain_codes

CPU = torch.device("cpu")


def test_sampling_beside_the_plain_way() -> None:
    [found] = sampling.sampling(CPU, [("tiny", 2, 4)], repeats=2).values()
    assert found["ratio"] > 0 and found["plain"]["repeats"] == 2 and found["roofline_share"] > 0
    assert found["ours"]["items_per_s"] == 8 / found["ours"]["median_s"]


def test_images_beside_the_plain_way(monkeypatch) -> None:
    monkeypatch.setattr(sampling, "TOKENIZERS", run.ROOT / "configs/quickstart")
    monkeypatch.setattr(sampling, "STAND_INS", ["data.root=none"])
    [found] = sampling.images(CPU, ("tiny", "tokenizer", 2, 8), repeats=1).values()
    assert found["ours"]["items_per_s"] == 2 / found["ours"]["median_s"]


def test_the_plain_sampler_stays_on_its_device() -> None:
    model = GPT(GPT.Config(size="tiny", codebook_size=8, num_tokens=4, num_classes=3)).eval().to("meta")
    assert plain_codes(model, torch.tensor([0, 1], device="meta"), 4, sampling.GUIDANCE).shape == (2, 4)


def test_the_other_jobs_and_the_table(monkeypatch) -> None:
    quickstart = Path(run.ROOT / "configs/quickstart/tokenizer.yaml")
    monkeypatch.setattr(tokenizing, "CONFIG", quickstart)
    monkeypatch.setattr(tokenizing, "STAND_INS", [])
    toy = ["losses.perceptual=null", "model.decoder.cnn.channels=32", "data.batch_size=2"]
    cases = {"tokenizer S-S": (str(quickstart), 2, toy), "GPT-B": ("configs/quickstart/gpt.yaml", 2, [])}
    monkeypatch.setitem(training.CASES, "cpu", cases)
    found = {
        "extraction": tokenizing.extraction(CPU), "extraction_growth": tokenizing.extraction_growth(CPU, (4, 8)),
        "tokenizer_training": training.tokenizer_training(CPU), "gpt_training": training.gpt_training(CPU),
        "evaluation": evaluation.evaluation(CPU, images=1, features=32, dim=16, width=1 / 16, whole=4),
    }
    text = run.table({"benchmarks": found})
    assert text.count("| evaluation |") == 4 and text.count("| extraction_growth |") == 2 and "(" in text
    assert all(case["ratio"] > 0 for name in found for case in found[name].values() if "growth" not in name)
