"""Random streams: every seed, step, stream and rank has its own, also beyond the 32 bits that torch's CPU keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from autoregressive.config import TrainConfig
from autoregressive.train import without_data
from common import config, numerics
from common.dist import World

ROOT = Path(__file__).parents[2]
SEEDS = [0, 1, -1, 2**32, 1764320000123456789, 2**64, -(2**70)]


def test_low_bits_of_the_seeds_differ_too() -> None:
    """By the birthday bound, 10,000 seeds of 32 bits share 0.01 pairs."""
    found = {
        numerics.derive_seed(seed, "step", step, "rank", rank) % 2**32
        for seed in SEEDS for step in range(300) for rank in range(4)
    }  # fmt: skip
    assert len(found) >= len(SEEDS) * 300 * 4 - 1


def test_every_stream_is_its_own() -> None:
    streams = [("step", 1, 0), ("step", 0, 1), ("step", 1, 1), ("step", 11), ("order", 0), ("augmentation", 0), ()]
    assert len({numerics.derive_seed(0, *stream) for stream in streams}) == len(streams)
    assert all(0 <= numerics.derive_seed(seed, "order", 3) < 2**63 for seed in SEEDS)
    draws = {numerics.numpy_generator(seed, "order", 0).random() for seed in SEEDS}
    draws |= {torch.rand((), generator=numerics.step_generator(seed, 0)).item() for seed in SEEDS}
    assert len(draws) == 2 * len(SEEDS)


def test_seeds_are_stable() -> None:
    """A resume on another machine or version draws the same."""
    assert numerics.derive_seed(0, "step", 0, 0) == 4542949739309568895


@pytest.mark.parametrize("seed", [0, 2**40])
def test_a_generators_dropout_does_not_repeat(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that are multiples of 4096 repeated after 2**32 / 4096**2 = 256 steps."""
    words = ["run.out=x", "run.steps=2000", f"run.seed={seed}", "run.precision=none", "model.size=tiny"]
    words += ["model.codebook_size=8", "model.num_tokens=4", "model.num_classes=2", "data.batch_size=2"]
    build, batch = without_data(config.parse(TrainConfig, words))
    trainee = build(World(0, 1, torch.device("cpu")))
    codes = batch(2)["codes"]
    seeds = []
    monkeypatch.setattr(numerics, "random_bits", lambda *asked: seeds.append(asked[0]) or torch.zeros(2, 1).long())
    for step in range(600):
        trainee._draw(codes, step)
    assert len(set(seeds)) == 600


def test_only_one_module_makes_seeds() -> None:
    """Products of seeds and steps elsewhere would lose bits again."""
    made = subprocess.run(
        ["git", "grep", "-nE", r"Philox\(|default_rng\(|manual_seed\(", "--", "*.py", ":!tests", ":!benchmarks"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    others = [line for line in made if "derive_seed(" not in line and not line.startswith("common/numerics.py")]
    assert [line.partition(":")[0] for line in others] == ["studies/photos.py"], others  # its photographs are published
