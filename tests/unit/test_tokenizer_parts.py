"""Parts beside the released hybrids: adversarial losses, LeCam, perturbation, hit counts, RobusTok's transformers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from common.errors import UserError
from common.optim import rate
from common.options import OptimConfig
from tests.unit.test_released_files import make
from tokenizer.losses.adversarial import (
    LeCam,
    adaptive_weight,
    non_saturating_generator,
    vanilla_discriminator,
)
from tokenizer.losses.feature import contrastive_loss
from tokenizer.losses.pixel import ReconstructionLoss
from tokenizer.quantizers import perturbation
from tokenizer.quantizers.lfq import LookupFreeQuantizer
from tokenizer.quantizers.perturbation import Perturbation, anneal, nearest_codes
from tokenizer.quantizers.vq import VectorQuantizer
from tokenizer.quantizers.vq_hits import HitCountQuantizer
from tokenizer.teachers import HALF, IMAGENET, prepare


def test_the_non_saturating_game_pulls_both_ways():
    real, fake = torch.randn(50).requires_grad_(), torch.randn(50).requires_grad_()
    vanilla_discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    non_saturating_generator(fake).backward()
    assert (fake.grad < 0).all() and fake.grad.std() > 0


def test_adaptive_weight_balances_the_gradients():
    last = torch.randn(3).requires_grad_()
    strong, weak = (last * torch.tensor([3.0, 0, 0])).sum(), (last * torch.tensor([0, 1.0, 0])).sum()
    assert adaptive_weight(strong, weak, last) == pytest.approx(3.0, rel=1e-3)
    assert adaptive_weight(strong, weak * 0, last) == 1e4
    assert not adaptive_weight(strong, weak, last).requires_grad


def test_lecam_follows_the_batches_then_averages_them():
    lecam = LeCam(decay=0.9, settle=2)
    for step, value in enumerate((1.0, 2.0, 3.0)):
        lecam.update(torch.tensor([value]), torch.tensor([-value]), step)
    assert (lecam.real, lecam.fake) == (pytest.approx(0.9 * 2 + 0.1 * 3), pytest.approx(-2.1))
    logits = torch.tensor([2.1, -2.1])
    assert lecam.penalty(logits[:1], logits[1:]) == pytest.approx(2 * 4.2**2)


def test_the_contrastive_loss_is_small_for_pairs_only():
    features = torch.eye(4)
    assert contrastive_loss(features, features, 100.0) < 1e-3 < contrastive_loss(features, features.roll(1, 0), 100.0)


def test_the_contrastive_loss_of_some_pairs_is_that_of_a_smaller_batch():
    a, b = (torch.randn(5, 3, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (0, 1))
    counted = torch.tensor([True, False, True, True, False])
    found, expected = contrastive_loss(a, b, 2.0, counted), contrastive_loss(a[counted], b[counted], 2.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, [a, b]), torch.autograd.grad(expected, [a, b]))


# ----------------------------------------------------------------------------------------------- perturbation


@pytest.fixture
def quantizer() -> VectorQuantizer:
    torch.manual_seed(0)
    config = VectorQuantizer.Config(codebook_size=32, codebook_dim=4, rotation=False)
    return VectorQuantizer(config).eval()


def perturbed(quantizer: VectorQuantizer, latents: torch.Tensor, rate: float, strength: int, **more: object):
    """Codes (B,L) after perturbing, and before. All images are chosen unless `chosen` says otherwise."""
    shape = len(latents), latents.shape[2] * latents.shape[3]
    generator = torch.Generator().manual_seed(3)
    draws = torch.rand(shape, generator=generator), torch.randint(strength, shape, generator=generator)
    how = {"chosen": torch.ones(len(latents), dtype=torch.bool)} | more
    done = quantizer(latents)
    how = Perturbation(rate=rate, strength=strength, uniforms=draws[0], ranks=draws[1], **how)
    return quantizer(quantizer.perturb(latents, done, how)).codes, done.codes


def test_perturbation_that_is_off_changes_nothing(quantizer):
    latents = torch.randn(2, 4, 3, 3)
    for rate_, strength, chosen in ((0.0, 9, True), (1.0, 1, True), (1.0, 9, False)):
        out, codes = perturbed(quantizer, latents, rate_, strength, chosen=torch.tensor([chosen] * 2))
        assert torch.equal(out, codes)


@pytest.mark.parametrize("neighbours", ["latent", "code"])
def test_perturbed_codes_are_near_ones_in_the_chosen_images(quantizer, neighbours):
    latents = torch.randn(2, 4, 3, 3)
    out, codes = perturbed(quantizer, latents, 1.0, 5, chosen=torch.tensor([False, True]), neighbours=neighbours)
    assert torch.equal(out[0], codes[0]) and not torch.equal(out[1], codes[1])
    centres = {"latent": quantizer.rows(latents[1:]), "code": quantizer.lookup(codes[1])}
    near = {name: torch.cdist(rows, quantizer.codebook()).argsort(dim=1)[:, :5] for name, rows in centres.items()}
    assert torch.equal(near["latent"][:, 0], near["code"][:, 0]) and not torch.equal(near["latent"], near["code"])
    assert (near[neighbours] == out[1][:, None]).any(dim=1).all()


def test_the_whole_codebook_as_neighbours_gives_uniform_codes(quantizer):
    out, _ = perturbed(quantizer, torch.randn(40, 4, 16, 16), 1.0, 32)
    expected = out.numel() / 32
    chi_square = ((torch.bincount(out.flatten(), minlength=32) - expected) ** 2 / expected).sum()
    assert chi_square < 61.1  # 99.9% quantile with 31 degrees of freedom


def test_a_redrawn_code_may_stay_what_it_is():
    """alpha 0.5 among 100 neighbours keeps 50.5% of the codes: 1 - 0.5 * (1 - 1/100)."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VectorQuantizer.Config(codebook_size=256, codebook_dim=8, rotation=False)).eval()
    out, codes = perturbed(quantizer, torch.randn(40, 8, 16, 16), 0.5, 100)
    kept = (out == codes).float().mean(dim=1)
    assert kept.mean().item() == pytest.approx(0.505, abs=0.015)  # three deviations of 40 x 256 draws
    assert kept.min() > 0.38 and kept.max() < 0.63


def test_a_pool_that_cannot_be_is_refused(quantizer):
    for strength in (-1, 0, 33):
        with pytest.raises(UserError, match="expected 1 to codebook_size=32"):
            nearest_codes(quantizer, torch.zeros(1, 4), strength)


def test_near_codes_found_piece_by_piece_are_the_same(quantizer, monkeypatch):
    centres = torch.randn(50, 4)
    whole = nearest_codes(quantizer, centres, 9)
    monkeypatch.setattr(perturbation, "AT_ONCE", 7 * 32)
    assert torch.equal(nearest_codes(quantizer, centres, 9), whole)
    assert nearest_codes(quantizer, centres[:0], 9).shape == (0, 9)


def test_near_codes_of_many_bits_differ_in_few_of_them():
    """All distances of 600 centres to 2^18 codes would take 629 MB; they are computed in three pieces."""
    quantizer = LookupFreeQuantizer(LookupFreeQuantizer.Config(codebook_size=2**18)).eval()
    codes = torch.randint(2**18, (600,), generator=torch.Generator().manual_seed(0))
    near = nearest_codes(quantizer, quantizer.lookup(codes), 1 + 18 + 153)
    bits = (quantizer.lookup(near) != quantizer.lookup(codes)[:, None]).sum(dim=2)
    assert torch.equal(near[:, 0], codes)
    assert torch.equal(bits, torch.tensor([0] + [1] * 18 + [2] * 153).expand(600, -1))


def test_annealing_is_continuous_for_every_end():
    for end in (0.0, 0.25, 0.5, 1.0):
        values = [anneal(epoch, 40, 120, end) for epoch in range(200)]
        assert values[40] == 1.0 and values[120:] == [end] * 80 and values == sorted(values, reverse=True)
        assert max(a - b for a, b in pairwise(values)) < 0.013
    assert anneal(5, 5, 5, 0.5) == 1.0 and anneal(6, 5, 5, 0.5) == 0.5


# ------------------------------------------------------------------------------------------------- RobusTok


def test_hit_counts_follow_what_is_chosen():
    quantizer = HitCountQuantizer(HitCountQuantizer.Config(codebook_size=8, codebook_dim=4)).train()
    assert quantizer.usage() == 0
    latents = quantizer.codebook().detach()[:2].repeat(50, 1).t().reshape(1, 4, 10, 10)
    quantizer(latents)
    assert quantizer.hits.tolist() == [50, 50, 0, 0, 0, 0, 0, 0] and quantizer.usage() == 0.25
    quantizer(latents.flip(3))
    assert quantizer.hits.sum() == pytest.approx(100)


def test_a_teacher_inside_a_tokenizer_is_frozen_and_stays_in_evaluation():
    model = make("dino_vit").train()
    assert not model.teacher.training and not any(p.requires_grad for p in model.teacher.parameters())
    assert model.encoder.training
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert model.teacher(images).shape == (2, 4, 64)


def test_robustok_refuses_what_does_not_fit():
    for changes, message in (
        ({"layout": {"num_tokens": 8}}, "num_tokens=4"), ({"z_channels": 32}, "width=64"),
        ({"image_size": 40}, "not a multiple of patch=16"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            make("dino_vit", **changes)


def test_teachers_see_normalised_images_of_their_size():
    white = torch.ones(1, 3, 16, 16)
    for resize_first in (False, True):
        shown = prepare(white, 28, IMAGENET, resize_first)
        assert shown.shape == (1, 3, 28, 28)
        torch.testing.assert_close(shown[0, :, 0, 0], (1 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1]))
    torch.testing.assert_close(prepare(white, 16, HALF, True), white)


# ------------------------------------------------------------------------------------------------- schedules


def test_cooldowns_end_where_they_should():
    for shape in ("sqrt", "linear", "cosine", "square", "1.5"):
        config = OptimConfig(lr=1.0, schedule="wsd", cooldown_fraction=0.5, cooldown_shape=shape, end_lr=0.1)
        values = [rate(config, step, 100) for step in range(101)]
        assert values[:51] == [1.0] * 51 and values[100] == pytest.approx(0.1)
        assert values == sorted(values, reverse=True)
    with pytest.raises(UserError, match="cooldown_shape got 'steep'"):
        rate(OptimConfig(schedule="wsd", cooldown_shape="steep"), 90, 100)


def test_epochs_hold_their_rate():
    config = OptimConfig(lr=1.0, schedule="cosine_epochs", epoch_steps=10, warmup=10, warmup_lr=0.5)
    values = [rate(config, step, 100) for step in range(100)]
    assert all(len(set(values[epoch * 10 : epoch * 10 + 10])) == 1 for epoch in range(10))
    assert values[0] == 0.5 and values[10] == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))
    with pytest.raises(UserError, match="cosine_epochs or wsd"):
        rate(OptimConfig(schedule="cosin"), 0, 1)


def test_losses_compute_in_fp32_and_their_networks_under_autocast() -> None:
    seen = {}

    class Recording(ReconstructionLoss):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            seen["features"] = torch.is_autocast_enabled("cpu")
            return images

        def distance(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            seen["distance"] = torch.is_autocast_enabled("cpu")
            return (features - target).square().mean()

    loss, images = Recording(ReconstructionLoss.Config()), torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss(images, loss.target(images))
    assert seen == {"features": True, "distance": False}
