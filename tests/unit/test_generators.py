"""Generators beyond the plain GPT: RAR's orders, captions, forced codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoregressive.config import SampleConfig, Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from autoregressive.sample import choose_labels
from common import numerics
from common.config import build
from common.errors import UserError


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight random, so that every path shows in the output."""
    torch.manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model.eval()


@pytest.fixture
def rar() -> RAR:
    sizes = {"size": "tiny", "codebook_size": 40, "num_tokens": 16, "num_classes": 5}
    return randomise(build("autoregressive.models:GENERATORS", {"name": "rar", **sizes}))


def cached(model: torch.nn.Module, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits of every code, decoded one by one; slots that were not written yet would show."""
    with torch.inference_mode():
        cache = model.new_cache(len(codes))
        cache.keys.fill_(torch.nan)
        steps = [model.prefill(labels, cache)]
        steps += [model.decode_one(codes[:, p - 1], p, cache, labels) for p in range(1, codes.shape[1])]
    return torch.stack(steps, 1)


def test_rar_decodes_in_raster_order_as_it_was_taught(rar: RAR) -> None:
    codes, labels = torch.randint(40, (3, 16)), torch.tensor([0, 4, 5])
    torch.testing.assert_close(cached(rar, codes, labels), rar(codes, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt", "rar"])
def test_training_hides_the_class_of_the_images_marked_and_of_no_other(name: str) -> None:
    sizes = {"size": "tiny", "codebook_size": 40, "num_tokens": 16, "num_classes": 5}
    model = randomise(build("autoregressive.models:GENERATORS", {"name": name, **sizes}))
    codes, labels = torch.randint(40, (3, 16)), torch.tensor([0, 4, 2])
    logits = model(codes, labels, torch.tensor([True, False, False]))
    hidden, shown = model(codes, model.null(labels)), model(codes, labels)
    torch.testing.assert_close(logits, torch.cat([hidden[:1], shown[1:]]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hidden[0], shown[0], atol=1e-2)


def test_rar_returns_logits_by_grid_position_and_never_looks_ahead(rar: RAR) -> None:
    codes, labels = torch.randint(40, (2, 16)), torch.tensor([0, 1])
    orders = torch.stack([torch.randperm(16), torch.arange(16)])
    logits = rar(codes, labels, orders=orders)
    torch.testing.assert_close(logits[1], rar(codes, labels)[1], rtol=1e-4, atol=1e-4)
    changed = codes.clone()
    late = orders[0, 9:]
    changed[0, late] = (changed[0, late] + 1) % 40
    again = rar(changed, labels, orders=orders)
    early = orders[0, :10]
    torch.testing.assert_close(again[0, early], logits[0, early])
    assert not torch.allclose(again[0, orders[0, 10:]], logits[0, orders[0, 10:]])


def test_rar_draws_fewer_random_orders_later_in_the_run(rar: RAR) -> None:
    raster = torch.arange(16)
    counts = []
    for done in (0.0, 0.5, 0.625, 0.75, 1.0):
        orders = rar.draw_orders(numerics.random_bits(1, torch.arange(200), 17), done)
        assert (orders.sort(dim=1).values == raster).all()
        counts.append(int((orders != raster).any(dim=1).sum()))
    assert counts[:2] == [200, 200] and counts[3:] == [0, 0] and 60 < counts[2] < 140


def test_forced_codes_are_kept_and_seen(rar: RAR) -> None:
    labels, options = torch.tensor([1, 2]), {"sampling": Sampling(greedy=True), "guidance": Guidance(3.0)}
    free = generate(rar, labels, **options)
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[:, :4] = True
    forced = (free + 1) % 40
    mixed = generate(rar, labels, **options, forced=forced, keep=keep)
    assert torch.equal(mixed[:, :4], forced[:, :4])
    assert not torch.equal(mixed[:, 4:], free[:, 4:])
    assert torch.equal(generate(rar, labels, **options, forced=forced, keep=keep & False), free)


def test_an_unknown_size_of_rar_is_named() -> None:
    with pytest.raises(UserError, match="RAR size 'XLL'"):
        RAR(RAR.Config(size="XLL"))


@pytest.fixture
def captioned() -> GPT:
    return randomise(GPT(GPT.Config(
        size="tiny", codebook_size=40, num_tokens=16, positions="rope2d", condition="caption", caption_tokens=6,
        caption_width=12,
    )))  # fmt: skip


def captions(*lengths: int) -> torch.Tensor:
    """Text features, padded on the left."""
    features = torch.randn(len(lengths), 6, 12)
    for row, length in enumerate(lengths):
        features[row, : 6 - length] = 0
    return features


def test_captions_decode_as_they_were_taught(captioned: GPT) -> None:
    codes, text = torch.randint(40, (3, 16)), captions(6, 2, 4)
    torch.testing.assert_close(cached(captioned, codes, text), captioned(codes, text), rtol=1e-4, atol=1e-4)


def test_padding_of_a_caption_is_not_attended_to(captioned: GPT) -> None:
    """What stands in padded slots may change nothing: their embedding is replaced behind the model's back."""
    codes, text = torch.randint(40, (2, 16)), captions(6, 3)
    before = captioned(codes, text)
    embed = captioned.cls_embedding.forward
    captioned.cls_embedding.forward = lambda given: torch.where(given.any(-1, keepdim=True), embed(given), 7.0)
    torch.testing.assert_close(captioned(codes, text), before)


def test_no_caption_is_the_learned_one_behind_the_same_padding(captioned: GPT) -> None:
    text = captions(6, 3)
    null = captioned.null(text)
    assert torch.equal(null[0], captioned.cls_embedding.uncond_embedding)
    assert (null[1, :3] == 0).all() and torch.equal(null[1, 3:], captioned.cls_embedding.uncond_embedding[3:])
    dropped = captioned(torch.zeros(2, 16, dtype=torch.int64), text, torch.tensor([True, False]))
    assert torch.equal(dropped[0], captioned(torch.zeros(2, 16, dtype=torch.int64), null)[0])
    assert generate(captioned, text, guidance=Guidance(2.0), sampling=Sampling(greedy=True)).shape == (2, 16)


def test_rar_without_positions_loses_the_same_in_every_order(rar: RAR) -> None:
    """A permutation of all codes (the orders' and the image's) is all that a model with empty tables could notice."""
    for table in (rar.pos_embed, rar.target_aware_pos_embed):
        torch.nn.init.zeros_(table)
    codes, labels = torch.randint(40, (2, 16)), torch.tensor([0, 1])
    orders = torch.stack([torch.randperm(16), torch.randperm(16)])
    permuted = codes.gather(1, orders)
    raster = torch.nn.functional.cross_entropy(rar(permuted, labels).flatten(0, 1), permuted.flatten())
    random = torch.nn.functional.cross_entropy(rar(codes, labels, orders=orders).flatten(0, 1), codes.flatten())
    torch.testing.assert_close(raster, random)
    assert rar.states(codes, labels).shape == (2, 17, 64)


def test_every_code_forced_is_every_code_returned(rar: RAR) -> None:
    forced = torch.randint(40, (2, 16))
    drawn = generate(rar, torch.tensor([0, 1]), guidance=Guidance(4.0), forced=forced, keep=torch.ones(2, 16) > 0)
    assert torch.equal(drawn, forced)


def test_class_ids_stand_behind_codes_and_mask_in_rars_table(rar: RAR) -> None:
    rows = rar.embeddings.weight
    assert len(rows) == 40 + 1 + 5 + 1
    assert torch.equal(rar._class(torch.tensor([0]))[0, 0], rows[41])
    assert torch.equal(rar._class(rar.null(torch.tensor([0])))[0, 0], rows[-1])


def test_the_power_schedule_starts_unguided_and_is_constant_for_power_0() -> None:
    assert Guidance(6.0, "power_cosine", power=0.0).scales(8) == pytest.approx([6.0] * 8)
    scales = Guidance(6.0, "power_cosine", power=1.15).scales(8)
    assert scales[0] == 1.0 and scales == sorted(scales) and scales[-1] < 6.0


def test_50000_samples_are_50_of_every_class() -> None:
    labels = choose_labels(SampleConfig(sample_dir="x", gpt_ckpt="x", vq_ckpt="x"), 1000)
    assert len(labels) == 50_000 and (np.bincount(labels, minlength=1000) == 50).all()
