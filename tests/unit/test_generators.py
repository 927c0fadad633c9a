"""Generators beyond the plain GPT: RAR's orders, captions, forced codes."""

from __future__ import annotations

import pytest
import torch

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
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
        orders = rar.draw_orders(200, done, torch.Generator().manual_seed(1))
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
