"""KID, CMMD, bootstrap and feature networks: torch-fidelity, brute force, closed forms, invariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity.metric_fid as fidelity_fid
import torch_fidelity.metric_kid as fidelity_kid
import torch_fidelity.metric_prc as fidelity_prc
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from evaluations.metrics import features, mmd
from evaluations.metrics.bootstrap import frechet_replicates, interval, mean_replicates, resamples
from evaluations.metrics.frechet import Moments, fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall


def pair(count: int = 60, other: int = 60, width: int = 16, apart: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(count, width)), rng.normal(size=(other, width)) * 1.2 + apart


@pytest.mark.parametrize("size", [10, 60])
def test_kid_is_torch_fidelitys(size: int) -> None:
    x, y = pair()
    told = fidelity_kid.kid_features_to_metric(
        torch.tensor(x), torch.tensor(y), kid_subsets=100, kid_subset_size=size, verbose=False
    )
    assert mmd.kid(x, y, size) == pytest.approx(told["kernel_inception_distance_mean"], rel=1e-9)


def test_frechet_distance_precision_and_recall_are_torch_fidelitys() -> None:
    x, y = pair(apart=0.0)
    stats = [fidelity_fid.fid_features_to_statistics(torch.tensor(side)) for side in (x, y)]
    told = fidelity_fid.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(fit(x), fit(y)) == pytest.approx(told, rel=1e-6)
    told = fidelity_prc.prc_features_to_metric(torch.tensor(y), torch.tensor(x), prc_neighborhood=3, verbose=False)
    ours = precision_recall(x, y)
    assert (ours.precision, ours.recall) == pytest.approx((told["precision"], told["recall"]), rel=1e-6)


def test_cmmd_is_the_sum_over_all_pairs() -> None:
    x, y = pair(9, 7)
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return np.mean([np.exp(-((u - v) ** 2).sum() / 200) for u in p for v in q])

    expected = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert mmd.cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert mmd.cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_the_replicates_are_the_distances_of_repeated_images() -> None:
    x, y = pair(12, 12, width=5)
    counts, others = resamples(12, 3, 0), resamples(12, 3, 0, "other")
    assert (counts.sum(axis=1) == 12).all() and not (counts == others).all()
    repeated = [(np.repeat(x, a, axis=0), np.repeat(y, b, axis=0)) for a, b in zip(counts, others, strict=True)]
    np.testing.assert_allclose(mean_replicates(x[:, 0], counts), [a[:, 0].mean() for a, _ in repeated], rtol=1e-12)
    for width in (5, 40):  # with more and with fewer images than features
        x, y = pair(12, 12, width=width)
        repeated = [(np.repeat(x, a, axis=0), np.repeat(y, b, axis=0)) for a, b in zip(counts, others, strict=True)]
        expected = [frechet_distance(fit(a), fit(b)) for a, b in repeated]
        np.testing.assert_allclose(frechet_replicates(x, y, counts, others), expected, rtol=1e-8)


def test_replicates_are_weighted_sums_over_pairs_of_different_images() -> None:
    x, y = pair(6, 6, width=4)
    times = np.array([2, 1, 0, 1, 1, 1])

    def mean(p: np.ndarray, q: np.ndarray, kernel: Any, whole: bool) -> float:
        pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
        apart = np.average([kernel(p[i], q[j]) for i, j in pairs], weights=[times[i] * times[j] for i, j in pairs])
        own = np.average([kernel(p[i], q[i]) for i in range(6)], weights=times)
        return (5 * apart + own) / 6 if whole else apart

    def cubic(u: np.ndarray, v: np.ndarray) -> float:
        return (u @ v / 4 + 1) ** 3

    def gaussian(u: np.ndarray, v: np.ndarray) -> float:
        return np.exp(-((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2).sum() / 200)

    expected = mean(x, x, cubic, False) + mean(y, y, cubic, False) - 2 * mean(x, y, cubic, True)
    assert mmd.kid_replicates(x, y, times[None])[0] == pytest.approx(expected, rel=1e-9)
    expected = 1000 * (mean(x, x, gaussian, True) + mean(y, y, gaussian, True) - 2 * mean(x, y, gaussian, True))
    assert mmd.cmmd_replicates(x, y, times[None])[0] == pytest.approx(expected, rel=1e-9)


def test_with_every_image_once_replicates_are_the_values() -> None:
    x, y = pair(30, 30)
    once = np.ones((1, 30))
    assert mmd.kid_replicates(x, y, once)[0] == pytest.approx(mmd.kid(x, y), rel=1e-12)
    assert mmd.cmmd_replicates(x, y, once)[0] == pytest.approx(mmd.cmmd(x, y), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, 30), order=st.permutations(range(17)))
def test_kernel_sums_depend_on_neither_blocks_nor_order(block: int, order: list[int]) -> None:
    x, y = pair(17, 11)
    ones = np.ones((1, 17)), np.ones((1, 11))
    whole = mmd.kernel_sums(x, y, mmd._polynomial, *ones)
    np.testing.assert_allclose(mmd.kernel_sums(x[order], y, mmd._polynomial, *ones, block=block), whole, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(width=st.sampled_from([4, 12, 90]), ranks=st.integers(1, 4), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_moments_depend_on_neither_batches_order_nor_ranks(width: int, ranks: int, batch: int, seed: int) -> None:
    """With fewer images than features, with more, and with more only after merging."""
    x, y = pair(40, 40, width)
    shuffled = x[np.random.default_rng(seed).permutation(40)]
    shares = [Moments() for _ in range(ranks)]
    for rank, share in enumerate(shares):
        own = shuffled[rank::ranks]
        for start in range(0, len(own), batch):
            share.update(own[start : start + batch])
    merged = Moments()
    for share in shares:
        merged.merge(share)
    assert merged.count == 40
    assert frechet_distance(merged.gaussian(), fit(y)) == pytest.approx(frechet_distance(fit(x), fit(y)), rel=1e-8)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        values = rng.normal(size=80)
        low, high = interval(mean_replicates(values, resamples(80, 200, number)))
        covered += low <= 0 <= high
    assert 178 <= covered <= 199


def test_dinov2s_positions_are_resampled_as_its_own_code_does() -> None:
    """A table that is linear in the place stays so, up to the ripple of the cubic kernel; 37 / 16.1 cells a step."""
    ramp = torch.arange(37.0)
    square = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij"), dim=-1).flatten(0, 1)
    table = torch.cat((torch.tensor([[7.0, 9.0]]), square))[None]
    found = features.resampled_positions(table, 16)
    assert found.shape == (1, 257, 2) and found[0, 0].tolist() == [7, 9]
    middle = found[0, 1:].view(16, 16, 2)[2:-2, 2:-2]
    expected = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    torch.testing.assert_close(middle[:, 0, 0], expected[2:-2], rtol=0, atol=0.06)
    torch.testing.assert_close(middle[0, :, 1], expected[2:-2], rtol=0, atol=0.06)


def test_networks_of_timm_return_their_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller networks of the same kinds, untrained."""
    import timm

    def small(name: str, **options: int) -> torch.nn.Module:
        kind = "vit_small_patch14_dinov2" if "dinov2" in name else "vit_base_patch32_clip_quickgelu_224"
        size = {} if "dinov2" in name else {"img_size": 336 - 336 % 32}
        return timm.create_model(kind, pretrained=False, **{"num_classes": 0, **size, **options})

    monkeypatch.setattr(features, "_pretrained", small)
    monkeypatch.setattr(features.ClipL14, "size", 320)
    images = torch.rand(2, 3, 48, 48) * 2 - 1
    for kind, width in ((features.DinoV2L14, 384), (features.ClipL14, 768)):
        pooled, logits = kind()(images)
        assert pooled.shape == (2, width) and logits.shape == (2, 0)


def test_missing_weights_are_one_sentence() -> None:
    with pytest.raises(UserError, match="measure the embedded distance"):
        features.DinoV2L14()
