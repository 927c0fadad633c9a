"""The Frechet distance as a loss: its gradient, its map, its state, and what the trainer shows it."""

from __future__ import annotations

import os
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from common import dist
from common.dist import World
from common.errors import UserError
from tests.integration.test_tokenizer_training import folder, settings  # noqa: F401  (a fixture)
from tokenizer.losses.frechet import FrechetPull
from tokenizer.train import TokenizerTrainee

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is there from the first step on, and exact."""
    for name, value in {"FIRST": 1, "EVERY": 1, "RIDGE": 0.0}.items():
        monkeypatch.setattr(FrechetPull, name, value)


def features(seed: int, count: int = 200, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return mixed + torch.randn(width, generator=generator)


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.mean(dim=0), torch.cov(rows.T, correction=0)


def distance(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """|m_r - m_f|^2 + tr(C_r + C_f) - 2 tr (C_r C_f)^1/2, the last from the eigenvalues of the product."""
    (mean_r, real), (mean_f, fake) = moments(real), moments(fake)
    root = torch.linalg.cholesky(real)
    cross = torch.linalg.eigvalsh(root.T @ fake @ root).sqrt().sum()
    return (mean_r - mean_f).square().sum() + real.trace() + fake.trace() - 2 * cross


def test_its_gradient_is_the_distances(at_once: None) -> None:
    real, fake = features(0).double(), features(1).double().requires_grad_()
    expected = torch.autograd.grad(distance(real, fake), fake)[0]
    pull, given = FrechetPull(5), fake.detach().float().requires_grad_()
    pull.watch(real.float(), given)
    (pull(given) * moments(real)[1].trace()).backward()
    torch.testing.assert_close(given.grad.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_following_it_makes_the_statistics_the_images(at_once: None) -> None:
    real, fake = features(0), features(1)
    pull = FrechetPull(5)
    pull.watch(real, fake)
    given = fake.clone().requires_grad_()
    (pull(given) * moments(real)[1].trace() * len(fake) / 2).backward()
    moved = fake - given.grad
    for found, expected in zip(moments(moved), moments(real), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    pull.watch(real, real)  # the average of both steps is no longer where it was
    assert pull(moved) > 0


def test_elsewhere_than_in_the_images_main_directions_only_means_are_pulled(
    at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrechetPull, "DIRECTIONS", 2)
    real, fake = features(0), features(1)
    pull = FrechetPull(5)
    pull.watch(real, fake)
    given = fake.clone().requires_grad_()
    (pull(given) * moments(real)[1].trace() * len(fake) / 2).backward()
    moved, (_, vectors) = fake - given.grad, torch.linalg.eigh(moments(real)[1])
    for found, expected in zip(moments(moved @ vectors[:, -2:]), moments(real @ vectors[:, -2:]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    others = vectors[:, :-2]
    (mean, covariance), (was, before) = moments(moved @ others), moments(fake @ others)
    torch.testing.assert_close(covariance, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mean, real.mean(dim=0) @ others, rtol=1e-3, atol=1e-3)
    assert (mean - was).norm() > 0.1


def test_it_waits_for_enough_images() -> None:
    pull = FrechetPull(5)
    for step in range(FrechetPull.FIRST // 64):
        assert pull(features(1)) == 0
        pull.watch(features(2 * step, 64), features(2 * step + 1, 64))
    assert pull(features(1)) > 0


def test_what_waits_for_the_map_is_part_of_the_state() -> None:
    whole, half = FrechetPull(5), FrechetPull(5)
    for step in range(FrechetPull.FIRST // 128):
        for pull in (whole, half):
            pull.watch(features(2 * step, 64), features(2 * step + 1, 64))
    resumed = FrechetPull(5)
    resumed.load_state_dict(half.state_dict())
    for step in range(FrechetPull.FIRST // 128, FrechetPull.FIRST // 64):
        for pull in (whole, resumed):
            pull.watch(features(2 * step, 64), features(2 * step + 1, 64))
    assert whole(features(1)) == resumed(features(1)) > 0


def test_the_map_is_computed_anew_now_and_then(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrechetPull, "EVERY", 3)
    pull, found = FrechetPull(5), []
    for seed in range(7):
        pull.watch(features(seed), features(seed + 10))
        found.append(pull.stretch.clone())
    same = [torch.equal(one, two) for one, two in pairwise(found)]
    assert same == [True, True, False, True, True, False]


def test_the_average_forgets_what_is_older_than_its_window(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrechetPull, "WINDOW", 400)
    pull = FrechetPull(5)
    for seed in range(3):
        pull.watch(features(seed), features(seed))
    expected = 0.25 * features(0).mean(dim=0) + 0.25 * features(1).mean(dim=0) + 0.5 * features(2).mean(dim=0)
    torch.testing.assert_close(pull.real_mean, expected)


def _watched(rank: int, ranks: int, out: Path, port: int) -> None:
    FrechetPull.FIRST, FrechetPull.EVERY, FrechetPull.RIDGE = 1, 1, 0.0  # in a spawned process, too
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init("cpu")
    pull = FrechetPull(5)
    for seed in range(2):
        pull.watch(*(rows.chunk(ranks)[rank] for rows in (features(seed), features(seed + 5))))
    torch.save(pull.state_dict(), f"{out}_{rank}")
    dist.close()


def test_ranks_see_the_features_of_all(at_once: None, tmp_path: Path, free_port: int) -> None:
    _watched(0, 1, tmp_path / "one", free_port)
    torch.multiprocessing.spawn(_watched, (2, tmp_path / "two", free_port), nprocs=2)
    one, two, other = (torch.load(tmp_path / name, weights_only=True) for name in ("one_0", "two_0", "two_1"))
    assert one.pop("_extra_state") == two.pop("_extra_state") == other.pop("_extra_state") == {
        "seen": 400, "age": 2, "first": [],
    }  # fmt: skip
    for key, value in one.items():
        assert torch.equal(two[key], other[key]), key
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-4)


def test_a_trainer_shows_it_whole_reconstructions_and_keeps_its_state(
    folder: Path, tmp_path: Path, at_once: None  # noqa: F811
) -> None:
    words = (
        "losses.perceptual.frechet=0.1", "losses.perceptual.size=32", "adversary=null", "regularizers.semantic=null",
        "regularizers.shortcut=null", "regularizers.nested_dropout={min_tokens: 2, full_probability: 0.5}",
    )  # fmt: skip

    def trainee() -> TokenizerTrainee:
        return TokenizerTrainee(settings(folder, tmp_path, *words), CPU)

    def batch(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return {"pixels": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)}

    first = trainee()
    whole = []
    for step in range(4):
        logged = first.step(batch(step), step)
        plan = first.plan(4, step)
        whole.append(plan.num_tokens >= 16)
        assert ("train/loss_perceptual_frechet" in logged) == whole[-1]
    assert {True, False} == set(whole) and first.losses["perceptual"].pull.seen == 4 * sum(whole)
    saved, weights = deepcopy((first.state(), first.weights()))
    second = trainee()
    second.load(lambda name: weights[name], saved)
    for step in range(4, 8):
        one, two = first.step(batch(step), step), second.step(batch(step), step)
        assert one["train/loss"] == two["train/loss"]


def test_lengths_of_their_own_leave_it_nothing(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("losses.perceptual.frechet=0.1", "regularizers.nested_dropout={min_tokens: 2, per_sample: true}")
    with pytest.raises(UserError, match="per_sample"):
        TokenizerTrainee(settings(folder, tmp_path, *words), CPU)
