"""Contracts of every quantizer, and the numbers of those without a learned codebook."""

from __future__ import annotations

import pytest
import torch

from common.config import build
from common.errors import UserError
from tests.unit.test_tokenizer import images, make
from tokenizer.quantizers import QUANTIZERS
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.kl import DiagonalGaussian

SMALL = {
    "vq": {"codebook_size": 32, "codebook_dim": 4, "entropy_weight": 0.1},
    "vq_hits": {"codebook_size": 32, "codebook_dim": 4},
    "fsq": {"levels": [4, 3, 5]},
    "lfq": {"codebook_size": 32},
    "kl": {"dim": 4, "weight": 0.1},
    "multi_scale": {"codebook_size": 32, "codebook_dim": 4, "scales": [1, 2, 3], "smoothers": 2},
    "product": {"groups": 2, "part": {"name": "vq", "codebook_size": 32, "codebook_dim": 4}},
}
SEVERAL = ("multi_scale", "product")  # codes a position
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
