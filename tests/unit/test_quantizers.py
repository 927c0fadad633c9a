"""Contracts of every quantizer, and the numbers of those without a learned codebook."""

from __future__ import annotations

import threading
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from common import dist
from common.config import build
from common.errors import UserError
from tests.unit.test_tokenizer import images, make
from tokenizer.quantizers import QUANTIZERS, base
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.kl import DiagonalGaussian

SMALL = {
    "vq": {"codebook_size": 32, "codebook_dim": 4, "entropy_weight": 0.1},
    "vq_hits": {"codebook_size": 32, "codebook_dim": 4},
    "fsq": {"levels": [4, 3, 5]},
    "lfq": {"codebook_size": 32},
    "kl": {"dim": 4, "weight": 0.1},
    "multi_scale": {"codebook_size": 32, "codebook_dim": 4, "scales": [1, 2, 3], "smoothers": 2},
    "binary_multi_scale": {"codebook_size": 16, "scales": [1, 2, 3], "smoothers": 2},
    "ibq": {"codebook_size": 32, "codebook_dim": 4, "l2_norm": True},  # else no vector need be its own nearest code
    "product": {"groups": 2, "part": {"name": "vq", "codebook_size": 32, "codebook_dim": 4}},
}
SEVERAL = ("multi_scale", "binary_multi_scale", "product")  # codes a position
WITH_CODES = [name for name, part in QUANTIZERS.items() if part is not DiagonalGaussian]
WITH_A_CODE_A_POSITION = [name for name in WITH_CODES if name not in SEVERAL]


def small(name: str, **changes: object) -> Quantizer:
    torch.manual_seed(0)
    return build("tokenizer.quantizers:QUANTIZERS", {"name": name, **SMALL[name], **changes})


def grid(quantizer: Quantizer) -> tuple[int, int]:
    return (3, 3) if hasattr(quantizer, "scales") else (3, 5)


def latents_for(quantizer: Quantizer) -> torch.Tensor:
    height, width = grid(quantizer)
    shape = (2, quantizer.latent_dim, getattr(quantizer, "groups", 1) * height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_a_scale_that_no_image_has_leaves_the_losses_finite() -> None:
    """Codebook drop may take the last scale from every image."""
    quantizer = small("binary_multi_scale", entropy_weight=0.1).train()
    done = quantizer(latents_for(quantizer), kept_scales=torch.tensor([2, 1]))
    assert all(loss.isfinite() for loss in done.losses.values())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_vectors_are_fp32_and_pass_gradients_to_every_latent_channel(name: str) -> None:
    quantizer = small(name).train()
    latents = latents_for(quantizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        done = quantizer(latents)
    assert done.vectors.shape == (2, quantizer.codebook_dim, *grid(quantizer)) and done.vectors.dtype == torch.float32
    assert all(loss.dim() == 0 and loss.isfinite() for loss in done.losses.values())
    (done.vectors.square().sum() + sum(done.losses.values())).backward()
    assert (latents.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_evaluation_adds_no_losses_and_is_deterministic(name: str) -> None:
    quantizer = small(name).eval()
    latents = latents_for(quantizer)
    assert quantizer(latents).losses == {}
    assert torch.equal(quantizer(latents).vectors, quantizer(latents).vectors)


@pytest.mark.parametrize("name", WITH_CODES)
def test_codes_stand_for_the_vectors(name: str) -> None:
    quantizer = small(name).eval()
    done = quantizer(latents_for(quantizer))
    height, width = grid(quantizer)
    assert done.codes.shape == (2, quantizer.num_codes(height * width)) and done.codes.dtype == torch.int64
    assert done.codes.min() >= 0 and done.codes.max() < quantizer.codebook_size
    torch.testing.assert_close(done.vectors, quantizer.arrange(done.codes, height, width), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WITH_A_CODE_A_POSITION)
def test_every_code_can_be_reached_and_then_counts_as_used(name: str) -> None:
    quantizer = small(name).train()
    codebook = quantizer.codebook().detach()
    assert codebook.shape == (quantizer.codebook_size, quantizer.codebook_dim)
    rows = torch.randn(5000, 3) * 2 if name == "fsq" else codebook  # FSQ squeezes its input before it rounds
    found = quantizer(rows.t()[None, :, :, None]).codes[0]
    assert found.unique().tolist() == list(range(quantizer.codebook_size)) and quantizer.usage() == 1


def test_finite_scalars_are_rounded_as_in_the_paper() -> None:
    quantizer = small("fsq")
    middle = quantizer(torch.zeros(1, 3, 1, 1))
    assert middle.codes.tolist() == [[2 + 4 * 1 + 12 * 2]]
    assert middle.vectors.flatten().tolist() == [0, 0, 0]
    ends = torch.tensor([[-9.0] * 3, [9.0] * 3])[:, :, None, None]
    assert quantizer(ends).codes.tolist() == [[0], [59]]
    assert quantizer.lookup(torch.tensor([0, 59])).tolist() == [[-1, -1, -1], [0.5, 1, 1]]
    everything = quantizer.lookup(torch.arange(60))
    assert len(everything.unique(dim=0)) == 60
    with pytest.raises(UserError, match="levels got"):
        small("fsq", levels=[8, 1])


def test_lookup_free_bits_are_little_endian_and_its_entropy_is_that_of_distances() -> None:
    quantizer = small("lfq", codebook_size=8, entropy_weight=1.0, commit_weight=1.0).train()
    rows = torch.tensor([[0.5, -0.5, 2.0], [-1.0, -1.0, -1.0]])
    done = quantizer(rows.t()[None, :, :, None])
    assert done.codes.tolist() == [[0b101, 0]]
    assert done.losses["commit"].item() == pytest.approx((0.25 + 0.25 + 1) / 6)
    distances = torch.cdist(rows, quantizer.codebook()).square()
    sharp = torch.softmax(-distances / 0.01, dim=1)
    mean = sharp.mean(dim=0)
    expected = -(sharp * sharp.clamp_min(1e-30).log()).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    assert done.losses["entropy"].item() == pytest.approx(expected.item(), abs=1e-4)
    with pytest.raises(UserError, match="power of two"):
        small("lfq", codebook_size=12)


def test_the_kl_term_is_that_of_a_normal_distribution_and_samples_spread() -> None:
    quantizer = small("kl", weight=1.0).train()
    latents = torch.cat([torch.full((2, 4, 3, 3), 2.0), torch.full((2, 4, 3, 3), -1.0)], dim=1)
    done = quantizer(latents)
    ours = torch.distributions.Normal(2.0, torch.tensor(-0.5).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)) * 4 * 9
    assert done.losses["kl"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0.3 < done.vectors.std() < 1.0 and not torch.equal(quantizer(latents).vectors, done.vectors)
    assert torch.equal(quantizer.eval()(latents).vectors, latents[:, :4])


@pytest.mark.parametrize("kind", ["hybrid_1d", "hybrid_2d", "cnn"])
@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in ("vq_hits", *SEVERAL)])
def test_a_tokenizer_works_with_each(name: str, kind: str) -> None:
    model = make(kind, quantizer={"name": name, **SMALL[name]})
    vectors = model.encode_vectors(images())
    whole = model.decode_vectors(vectors).images
    assert whole.shape == (3, 3, 32, 32)
    if name != "kl":
        torch.testing.assert_close(model.decode(model.encode(images())), whole, rtol=0, atol=1e-3)
    if model.is_1d:
        assert model.decode_vectors(vectors, 4).images.shape == (3, 3, 32, 32)


def test_a_continuous_tokenizer_says_that_it_has_no_codes() -> None:
    model = make(quantizer={"name": "kl", "dim": 4})
    for ask in (
        lambda: model.encode(images()), lambda: model.tokenize(images()), lambda: model.codebook_size,
        lambda: model.decode(torch.zeros(1, 16, dtype=torch.int64)),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"continuous \(quantizer kl\).*model\.quantizer"):
            ask()


@pytest.mark.parametrize("name", ["vq", "vq_hits", "lfq"])
def test_codes_that_only_another_rank_chose_are_in_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = small(name).train()
    mine, theirs = torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3])
    monkeypatch.setattr(dist, "all_gather", lambda mine: [mine, theirs])
    quantizer._remember(mine)
    assert quantizer.seen().nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_the_window_of_used_codes_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "USAGE_WINDOW", 4)
    quantizer = small("vq").train()
    quantizer._remember(torch.tensor([0, 1]))
    quantizer._remember(torch.tensor([2, 3, 4]))
    assert quantizer.codebook_used.tolist() == [1, 2, 3, 4]
    quantizer._remember(torch.tensor([5, 6, 7, 8, 9, 10]))
    assert quantizer.codebook_used.tolist() == [7, 8, 9, 10]


# ----------------------------------------------------------------------------------------------- codebook refresh

WITH_REFRESH = ("vq", "vq_hits")
TAKEN, SKIPPED = torch.zeros(()), torch.ones(())  # whether the optimizer step was skipped


def zipf_steps(table: torch.Tensor, alive: int, count: int = 10, images: int = 8) -> list[torch.Tensor]:
    """Latents (images,4,8,8) of several steps, at the first `alive` rows of `table`, at frequencies like 1 / rank.

    Rare codes are missing in most steps, and every one of them occurs in some step.
    """
    draws = torch.Generator().manual_seed(3)
    frequencies = 1.0 / torch.arange(1, alive + 1)
    codes = torch.multinomial(frequencies, count * images * 64, replacement=True, generator=draws)
    assert len(codes.unique()) == alive
    per_step = codes.view(count, -1)
    assert min(len(step.unique()) for step in per_step) < 0.9 * alive
    rows = table[codes] + 0.01 * torch.randn(len(codes), 4, generator=draws)
    return list(rows.view(count, images, 8, 8, 4).permute(0, 1, 4, 2, 3))


def trained(
    quantizer: Quantizer, steps: list[torch.Tensor], learn: bool = False
) -> tuple[Quantizer, torch.optim.Optimizer]:
    """Takes these steps as a trainer does; returns the quantizer's weight average and its optimizer."""
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=1e-3, weight_decay=0.0)
    average = deepcopy(quantizer).eval()
    for step, latents in enumerate(steps):
        quantizer.step = step
        losses = quantizer(latents).losses
        if learn:
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        quantizer.refresh(optimizer, average, TAKEN)
    return average, optimizer


def refreshing(name: str, **changes: object) -> Quantizer:
    quantizer = small(name, codebook_size=128, refresh_every=10, **changes).train()
    with torch.no_grad():  # codes far apart, so that it is known which latents choose which
        quantizer.embedding.weight.copy_(F.normalize(torch.randn(128, 4), dim=1))
    return quantizer


@pytest.mark.parametrize("name", WITH_REFRESH)
def test_refresh_moves_the_codes_of_no_recent_step_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "USAGE_WINDOW", 8 * 64)  # as in real training, the window is a step long
    quantizer = refreshing(name)
    start = quantizer.embedding.weight.detach().clone()
    steps = zipf_steps(start[:96], alive=96)
    chosen = torch.cat([quantizer.eval()(latents).codes.flatten() for latents in steps]).unique()
    trained(quantizer.train(), steps)
    moved = (quantizer.embedding.weight != start).any(dim=1)
    assert not moved[chosen].any() and moved.sum() == 128 - len(chosen) > 20
    new = quantizer.embedding.weight[moved]
    of_the_step = (new[:, None] == quantizer.rows(steps[-1])).all(dim=2)
    assert of_the_step.any(dim=1).all()
    assert torch.pdist(new).min() > 1e-4  # each onto another


def test_a_refreshed_code_takes_its_average_along_and_leaves_its_moments() -> None:
    quantizer = refreshing("vq")
    start = quantizer.embedding.weight.detach().clone()
    average, optimizer = trained(quantizer, zipf_steps(start, alive=128), learn=True)  # all codes have moments
    before = quantizer.embedding.weight.detach().clone()
    steps = [torch.full((2, 4, 8, 8), 0.1) + 0.01 * torch.randn(2, 4, 8, 8) for _ in range(10)]
    for step, latents in enumerate(steps, start=10):
        quantizer.step = step
        quantizer(latents)
        quantizer.refresh(optimizer, average, TAKEN)
    moved = (quantizer.embedding.weight != before).any(dim=1)
    assert moved.sum() > 100
    assert torch.equal(average.embedding.weight[moved], quantizer.embedding.weight[moved])
    moments = optimizer.state[quantizer.embedding.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        assert (moments[name][moved] == 0).all() and (moments[name][~moved] != 0).any()


def test_a_skipped_step_refreshes_nothing() -> None:
    quantizer = refreshing("vq")
    optimizer, start = torch.optim.AdamW(quantizer.parameters()), quantizer.embedding.weight.detach().clone()
    quantizer.step = 9
    quantizer(torch.full((1, 4, 2, 2), torch.nan))
    quantizer.refresh(optimizer, None, SKIPPED)
    assert torch.equal(quantizer.embedding.weight, start) and not quantizer.candidates


def test_a_refresh_is_the_same_for_one_process_and_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = refreshing("vq")
    halves = [deepcopy(whole), deepcopy(whole)]
    steps = zipf_steps(whole.embedding.weight.detach()[:90], alive=90)
    trained(whole, steps)
    met, given, rank = threading.Barrier(2), [None, None], threading.local()

    def all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
        given[rank.number] = tensor
        met.wait()
        gathered = list(given)
        met.wait()
        return gathered

    def run(number: int) -> None:
        rank.number = number
        trained(halves[number], [latents.chunk(2)[number] for latents in steps])

    monkeypatch.setattr(dist, "all_gather", all_gather)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for half in halves:
        torch.testing.assert_close(half.embedding.weight, whole.embedding.weight, rtol=0, atol=1e-6)


def test_a_resumed_run_refreshes_as_an_uninterrupted_one() -> None:
    through = refreshing("vq")
    steps = zipf_steps(through.embedding.weight.detach()[:96], alive=96)
    resumed, optimizer = deepcopy(through), torch.optim.AdamW(through.parameters())
    state = {}
    for step, latents in enumerate(steps):
        through.step = step
        through(latents)
        through.refresh(optimizer, None, TAKEN)
        if step == 4:
            state = deepcopy(through.refresh_state())
    resumed.load_refresh_state(state)
    for step, latents in enumerate(steps[5:], start=5):
        resumed.step = step
        resumed(latents)
        resumed.refresh(optimizer, None, TAKEN)
    assert torch.equal(through.embedding.weight, resumed.embedding.weight)
    assert "chosen" not in through.state_dict()  # checkpoints keep the released keys
