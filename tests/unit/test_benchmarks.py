"""The benchmarks run at toy size, and their table shows what they measured."""

from __future__ import annotations

import pytest
import torch

from autoregressive.models.gpt import GPT
from benchmarks import evaluation, reading, run, sampling, training
from benchmarks.plain_sampler import plain_codes
from benchmarks.timing import matrix_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CONFIGS", run.ROOT / "configs/quickstart")
    monkeypatch.setattr(sampling, "STAND_INS", ["data.root=none"])
    monkeypatch.setitem(sampling.EXTRACTED, "cpu", 2)


def test_sampling_is_compared_at_both_precisions() -> None:
    found = sampling.sampling(CPU, [("tiny", 2, 4)], repeats=2)
    assert [case.rpartition(", ")[2] for case in found] == ["none", "bf16"]
    for case in found.values():
        assert case["ratio"] > 0 and case["plain"]["repeats"] == 2 and case["roofline_share"] > 0
        assert case["ours"]["items_per_s"] == 8 / case["ours"]["median_s"]


def test_plain_codes_stay_on_their_device_and_in_their_dtype() -> None:
    model = GPT(GPT.Config(size="tiny", codebook_size=8, num_tokens=4, num_classes=3)).eval()
    labels = torch.tensor([0, 1])
    assert plain_codes(model.to("meta"), labels.to("meta"), 4, sampling.GUIDANCE).shape == (2, 4)
    model = GPT(GPT.Config(size="tiny", codebook_size=8, num_tokens=4, num_classes=3)).eval().bfloat16()
    assert plain_codes(model, labels, 4, sampling.GUIDANCE).shape == (2, 4)


def test_a_training_step_is_measured_against_its_counted_work() -> None:
    found = training.training(CPU, ["quickstart GPT"], repeats=1)
    assert [case.rpartition(", ")[2] for case in found] == ["none", "bf16"]
    for case in found.values():
        rate = case["gflop_per_image"] * 1e9 * case["ours"]["items_per_s"]
        precision = "bf16" if case is found["quickstart GPT, bf16"] else "none"
        assert case["mfu"] == pytest.approx(rate / matrix_rate(CPU, precision)) and 0 < case["mfu"] < 1.5
        assert case["peak_memory_gb"] > case["estimated_memory_gb"]


def test_every_container_is_read_beside_the_folder() -> None:
    found = reading.reading(CPU, images=16, each=2, shards=100, repeats=1)
    assert [*found] == [*reading.WRITERS, "100 shards"] and all(case["ratio"] > 0 for case in found.values())
    assert found["100 shards"]["handles"] <= 64


def test_the_table_has_a_row_for_every_case() -> None:
    found = {
        "images": sampling.images(CPU, ("tiny", "tokenizer", 2, 8), repeats=1),
        "extraction": sampling.extraction(CPU, "tokenizer", repeats=1),
        "evaluation": evaluation.evaluation(CPU, images=1, features=32, dim=16, width=1 / 16, whole=4),
    }
    text = run.table({"benchmarks": found})
    assert text.count("| evaluation |") == 4 and text.count("| images |") == 2 and text.count("| extraction |") == 2
