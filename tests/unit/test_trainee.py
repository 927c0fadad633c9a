"""The base class of trainers: micro-batches, resume, and steps that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from common import config
from common.dist import World
from common.options import OptimConfig, RunConfig
from common.trainee import Trainee
from tests.faults import jobs
from tokenizer.config import TrainConfig
from tokenizer.discriminators import DISCRIMINATORS
from tokenizer.losses.adversarial import GAMES
from tokenizer.train import TokenizerTrainee

CPU = World(0, 1, torch.device("cpu"))


class Fit(Trainee):
    """Fits a line through normalised inputs."""

    def __init__(self, **run: Any) -> None:
        super().__init__(RunConfig(out="x", steps=9, **run), OptimConfig(lr=0.1), CPU)
        self.start(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), ema_decay=0.9)

    def inputs(self, batch: dict[str, torch.Tensor], step: int) -> tuple[torch.Tensor, ...]:
        return (batch["x"],)

    def losses(self, step: int, number: int, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = (self.wrapped(x) - 1).square().mean()
        return loss, {"train/loss": loss}


def batch(seed: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))}


def everything(trainee: Trainee) -> list[torch.Tensor]:
    """A copy of all weights, optimizer states, counters and buffers."""
    held = trainee.weights(), trainee.state(), list(trainee.kept()), list(trainee.trained.buffers())
    return [leaf for leaf in tree_leaves(deepcopy(held)) if isinstance(leaf, torch.Tensor)]


def assert_same(before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)


def test_micro_batches_give_the_loss_and_the_gradient_of_the_whole_batch() -> None:
    found = []
    for accumulate in (1, 2, 4):
        trainee = Fit(accumulate=accumulate)
        trainee.trained[0].eval()  # statistics of a micro-batch would differ
        found.append(trainee.step(batch(1), 0))
    for other in found[1:]:
        for name in ("train/loss", "train/grad_norm"):
            torch.testing.assert_close(other[name], found[0][name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("earlier", [0, 2])
def test_a_step_that_is_not_finite_reaches_no_state(earlier: int) -> None:
    trainee = Fit()
    for step in range(earlier):
        trainee.step(batch(step), step)
    before = everything(trainee)
    broken = {"x": batch(5)["x"].index_fill(0, torch.tensor(1), float("nan"))}
    assert trainee.step(broken, earlier)["not_finite"] == 1
    assert_same(before, everything(trainee))
    assert trainee.step(batch(6), earlier + 1)["not_finite"] == 0
    assert all(value.isfinite().all() for value in everything(trainee))


def test_a_resumed_trainee_goes_on_in_the_same_way() -> None:
    whole, again = Fit(), Fit()
    for step in range(2):
        whole.step(batch(step), step)
    weights, state = deepcopy((whole.weights(), whole.state()))
    again.load(weights.__getitem__, state)
    for trainee in (whole, again):
        trainee.step(batch(2), 2)
    assert_same(everything(whole), everything(again))


def tokenizer(tmp_path: Path, *words: str) -> TokenizerTrainee:
    (tmp_path / "tokenizer.yaml").write_text(jobs.TOKENIZER)
    given = ["--config", str(tmp_path / "tokenizer.yaml"), "data.root=x", "run.out=x", "adversary.start=0", *words]
    return TokenizerTrainee(config.parse(TrainConfig, given), CPU)


def pixels(seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {"pixels": torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8, generator=drawn)}


@pytest.fixture(params=["reconstruction", "discriminator"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Breaks one loss of a trainee: that of the tokenizer, or that of the discriminator alone."""

    def break_one(trainee: TokenizerTrainee) -> pytest.MonkeyPatch:
        def nan(*_: Any) -> torch.Tensor:
            return torch.tensor(float("nan"), requires_grad=True)

        if request.param == "reconstruction":
            monkeypatch.setattr(trainee.losses_by_name["recon"], "distance", nan)
        else:
            game = GAMES["hinge"]
            monkeypatch.setattr(trainee.adversary, "game", type(game)(nan, game.generator))
        return monkeypatch

    return break_one


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("name", ["patchgan", "stylegan"])
def test_a_broken_loss_reaches_no_state_of_tokenizer_and_discriminator(
    tmp_path: Path, broken: Any, name: str, earlier: int
) -> None:
    """Weights, averages, moments, codebook refresh and usage, batch statistics, LeCam's means."""
    assert name in DISCRIMINATORS
    sizes = {"patchgan": "channels: 8, layers: 1", "stylegan": "image_size: 16"}
    words = (f"adversary.discriminator={{name: {name}, {sizes[name]}}}", "adversary.lecam={decay: 0.5}")
    trainee = tokenizer(tmp_path, *words, "losses.recon.name=l1", "run.accumulate=2")
    for step in range(earlier):
        trainee.step(pixels(step), step)
    before = everything(trainee)
    patch = broken(trainee)
    assert trainee.step(pixels(5), earlier)["not_finite"] == 1
    patch.undo()
    assert_same(before, everything(trainee))
    assert trainee.step(pixels(6), earlier + 1)["not_finite"] == 0
    assert all(value.isfinite().all() for value in everything(trainee) if value.is_floating_point())
