"""What makes a tokenizer flexible: which tokens learn at which step, how losses fade, what the views of a step are."""

from __future__ import annotations

import pytest
import torch

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from common.config import build
from tests.unit.test_tokenizer import images, make
from tokenizer.decoders.hybrid_1d import DecoderFeatures
from tokenizer.layout import Layout
from tokenizer.model import Pass, View
from tokenizer.regularizers.base import Context, Plan, Regularizer

LAYOUT = Layout(16, 8)


def regularizer(name: str, **keys: object) -> Regularizer:
    table = "tokenizer.regularizers:REGULARIZERS"
    context = Context(4, 32, torch.device("cpu"), num_codes=LAYOUT.extended, z_channels=32, quantizer=None)
    return build(table, {"name": name, **keys}, context=context)


def planned(*parts: Regularizer, step: int = 0, batch: int = 2) -> Plan:
    plan = Plan(step, 0, batch, 0, LAYOUT)
    for part in sorted(parts, key=lambda each: each.order):
        part.plan(plan)
    return plan


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_reach_each_token_exactly_as_often_as_it_is_kept(per_sample: bool) -> None:
    # Not a tiny model: its attention starts at zero, so nothing passes through it yet.
    model, dropout = make("hybrid_1d"), regularizer("nested_dropout", min_tokens=3, per_sample=per_sample)
    with torch.no_grad():
        vectors = model.quantizer(model.latents(images(2))[0]).vectors
    reached, kept = torch.zeros(2, 24), torch.zeros(2, 24)
    for step in range(40):
        plan = planned(dropout, step=step)
        tokens = vectors.clone().requires_grad_()
        model.decode_vectors(tokens, plan.lengths[0]).images.square().sum().backward()
        reached += (tokens.grad.abs().amax(dim=(1, 2)) > 0).float()
        kept += (torch.arange(24) < torch.as_tensor(plan.lengths[0]).view(-1, 1)).float()
    assert torch.equal(reached, kept)
    assert kept[:, :3].eq(40).all() and (kept[:, 3:].diff() <= 0).all() and 0 < kept[0, 20] < 40


def test_full_probability_is_that_of_all_tokens_without_the_redundant_ones() -> None:
    always = regularizer("nested_dropout", min_tokens=3, full_probability=1.0)
    assert [planned(always, step=step).lengths[0] for step in range(8)] == [LAYOUT.num_tokens] * 8
    half = regularizer("nested_dropout", min_tokens=3, full_probability=0.5)
    drawn = [planned(half, step=step).lengths[0] for step in range(400)]
    assert 0.4 < drawn.count(LAYOUT.num_tokens) / 400 < 0.65 and max(drawn) == LAYOUT.extended


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 0.5, 0.5, 0.5, 0.5]),
        ("linear", [0.5, 0.5, 0.4, 0.3, 0.1]),
        ("cosine", [0.5, 0.5, 0.44142, 0.3, 0.1]),
        ("step", [0.5, 0.5, 0.5, 0.5, 0.1]),
    ],
)
def test_semantic_strength_falls_as_scheduled(schedule: str, expected: list[float]) -> None:
    part = regularizer(
        "semantic", teacher={"name": "efficientnet_lite0"}, schedule=schedule, end_weight=0.1, k_start=4
    )
    kept = torch.tensor([1, 4, 9, 14, 24])
    assert part.strength(kept, 24).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_semantic_loss_is_logged_in_buckets_of_kept_tokens() -> None:
    part = regularizer("semantic", teacher={"name": "efficientnet_lite0"}, schedule="linear", k_start=1)
    for kept, bucket in ((1, 1), (7, 2), (12, 3), (23, 4), (24, 4)):
        done = Pass([], None, extra={name: torch.ones(2, 16, 112) for name in ("semantic", "semantic_target")})
        losses = part.losses(images(2), done, Plan(0, 0, 2, 0, LAYOUT, [kept]))
        assert set(losses) == {"semantic", f"semantic@k_quarter{bucket}", f"cosine@k_quarter{bucket}"}
        assert losses["semantic"].item() == losses[f"semantic@k_quarter{bucket}"].item()


def test_cross_length_draws_its_own_prefix_or_takes_nested_dropouts() -> None:
    alone = [planned(regularizer("cross_length"), step=step) for step in range(200)]
    assert {plan.lengths[0] for plan in alone} == {None} and {plan.lengths[1] for plan in alone} == {*range(1, 17)}
    parts = regularizer("cross_length"), regularizer("nested_dropout", min_tokens=2)
    beside = [planned(*parts, step=step) for step in range(200)]
    assert {plan.lengths[1] for plan in beside} == {16} and {plan.lengths[0] for plan in beside} == {*range(2, 25)}


@pytest.mark.parametrize(("kept", "also", "teacher"), [(None, 5, 0), (5, 16, 1), (20, 16, 0)])
def test_the_longer_view_teaches_the_shorter(kept: int | None, also: int, teacher: int) -> None:
    firsts = [torch.randn(2, 17, 8, requires_grad=True) for _ in range(2)]
    views = [View(torch.empty(0), None, DecoderFeatures(torch.empty(0), None, first)) for first in firsts]
    plan = Plan(0, 0, 2, 0, LAYOUT, [kept, also])
    regularizer("self_alignment").losses(torch.empty(0), Pass(views, None), plan)["self_alignment"].backward()
    assert firsts[1 - teacher].grad.abs().max() > 0
    assert firsts[teacher].grad is None or not firsts[teacher].grad.any()


def test_the_mean_token_is_that_of_the_real_ones() -> None:
    """Hidden and padding tokens change nothing in the decoder's mean row."""
    model = make()
    with torch.no_grad():
        vectors = model.quantizer(model.latents(images(2))[0]).vectors

    def mean_row(vectors: torch.Tensor, lengths: object) -> torch.Tensor:
        return model.decode_vectors(vectors, lengths).features.first[:, 0]

    rows = mean_row(vectors, torch.tensor([3, 24]))
    torch.testing.assert_close(rows[:1], mean_row(vectors[:1], 3))
    torch.testing.assert_close(rows[1:], mean_row(vectors[1:], 16))
    torch.testing.assert_close(mean_row(vectors, 20), mean_row(vectors, 16))


def test_one_generator_of_full_length_codes_samples_at_every_length() -> None:
    tokenizer = make()
    torch.manual_seed(0)
    model = build("autoregressive.models:GENERATORS", {
        "name": "gpt", "size": "tiny", "codebook_size": 64, "num_tokens": 16, "num_classes": 3,
    }).eval()  # fmt: skip
    torch.nn.init.normal_(model.output.weight)
    labels = torch.tensor([0, 1, 2])
    whole = generate(model, labels, 16, guidance=Guidance(scale=1.5), seed=3)
    for count in range(1, 17):
        codes = generate(model, labels, count, guidance=Guidance(scale=1.5), seed=3)
        assert torch.equal(codes, whole[:, :count])
        assert torch.allclose(tokenizer.decode(codes), tokenizer.decode(whole, count), atol=1e-4)
    assert len({tuple(row) for row in whole.tolist()}) == 3
