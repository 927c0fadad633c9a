"""The GPT as a module: options, cached decoding, label dropout, drawing that does not depend on the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autoregressive.config import Sampling
from autoregressive.generate import generate, gumbel_noise
from autoregressive.guidance import Guidance
from autoregressive.models import GENERATORS
from autoregressive.models.gpt import GPT, SIZES
from autoregressive.models.rar import SIZES as RAR_SIZES
from common.config import build
from common.errors import UserError
from common.layers import rotary_table_2d

OPTIONS = [
    {}, {"positions": "rope2d"}, {"qk_norm": True}, {"adaln": "full"}, {"adaln": "simple", "qk_norm": True},
    {"positions": "rope2d", "adaln": "full"},
]


def make(num_tokens: int = 16, **options: object) -> GPT:
    """A tiny GPT whose every weight is random, so that every path shows in the output."""
    torch.manual_seed(0)
    sizes = {"size": "tiny", "codebook_size": 40, "num_tokens": num_tokens, "num_classes": 5}
    model = build("autoregressive.models:GENERATORS", {"name": "gpt", **sizes, **options})
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model.eval()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cached_decoding_equals_teacher_forcing(options: dict) -> None:
    model = make(**options)
    codes, labels = torch.randint(40, (3, 16)), torch.tensor([0, 4, 5])
    with torch.inference_mode():
        cache = model.new_cache(3)
        cache.keys.fill_(torch.nan)  # A slot that was not written yet must never be read.
        steps = [model.prefill(labels, cache)]
        steps += [model.decode_one(codes[:, p - 1], p, cache, labels) for p in range(1, 16)]
        assert torch.allclose(torch.stack(steps, 1), model(codes, labels), atol=1e-4)
        greedy = generate(model, labels, sampling=Sampling(greedy=True))
        assert torch.equal(model(greedy, labels).argmax(-1), greedy)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_prefix_of_the_codes_gives_the_prefix_of_the_logits(options: dict) -> None:
    model = make(**options)
    codes, labels = torch.randint(40, (2, 16)), torch.tensor([1, 2])
    with torch.inference_mode():
        assert torch.allclose(model(codes[:, :6], labels), model(codes, labels)[:, :6], atol=1e-5)
    full = generate(model, labels, seed=3)
    assert torch.equal(generate(model, labels, num_tokens=6, seed=3), full[:, :6])
    with pytest.raises(UserError, match="at most 16"):
        generate(model, labels, num_tokens=17)
    with pytest.raises(UserError, match="1 to 16"):
        model(torch.zeros(1, 17, dtype=torch.int64), labels[:1])


def test_samples_do_not_depend_on_the_batch_or_the_cache() -> None:
    model = make()
    labels, guidance = torch.arange(5), Guidance(2.0, "step")
    together = generate(model, labels, guidance=guidance, seed=11)
    cache = model.new_cache(6)
    parts = [
        generate(model, labels[ids], guidance=guidance, seed=11, image_ids=torch.tensor(ids), cache=cache)
        for ids in ([0, 1], [4, 2], [3])
    ]
    assert torch.equal(torch.cat(parts), together[[0, 1, 4, 2, 3]])
    assert not torch.equal(generate(model, labels, guidance=guidance, seed=12), together)


def test_drawn_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    draws = (logits + gumbel_noise(5, 7, torch.arange(40_000), 3)).argmax(-1)
    frequencies = torch.bincount(draws, minlength=5) / len(draws)
    assert torch.allclose(frequencies, logits.softmax(-1), atol=0.008)


def test_noise_is_finite_and_differs_in_every_coordinate() -> None:
    ids = torch.arange(200)
    noise = gumbel_noise(500, 1, ids, 0)
    assert torch.isfinite(noise).all() and noise.unique().numel() > 0.99 * noise.numel()
    assert abs(noise.mean().item() - 0.5772) < 0.02
    for other in (gumbel_noise(500, 2, ids, 0), gumbel_noise(500, 1, ids, 1), gumbel_noise(500, 1, ids + 200, 0)):
        assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1].item()) < 0.02


def test_label_dropout_mask_and_draw() -> None:
    model = make(class_dropout=1.0)
    codes, labels = torch.randint(40, (2, 16)), torch.tensor([1, 2])
    hidden = model(codes, torch.tensor([5, 2]))
    assert torch.equal(model(codes, labels, torch.tensor([True, False])), hidden)
    assert not torch.equal(model(codes, labels), hidden)
    dropped = make(class_dropout=1.0, token_dropout=0.0, residual_dropout=0.0, ffn_dropout=0.0).train()
    assert torch.equal(dropped(codes, labels), model(codes, torch.tensor([5, 5])))


def test_last_code_is_never_read_and_its_position_gets_no_gradient() -> None:
    model = make()
    codes, labels = torch.randint(40, (2, 16)), torch.tensor([1, 2])
    changed = codes.clone()
    changed[:, -1] = 0
    assert torch.equal(model(codes, labels), model(changed, labels))
    F.cross_entropy(model(codes, labels).flatten(0, 1), codes.flatten()).backward()
    assert model.positional_embedding.grad[16].abs().sum() == 0


def test_training_after_sampling_and_a_clean_state_dict() -> None:
    model = make()
    keys = list(model.state_dict())
    generate(model, torch.tensor([0]))
    assert list(model.state_dict()) == keys
    model.train()(torch.randint(40, (2, 16)), torch.tensor([1, 2])).mean().backward()


def test_rotary_table() -> None:
    table = rotary_table_2d(4, 8)
    assert table.shape == (17, 4, 2) and not table[0].any()
    assert torch.equal(table[1], torch.tensor([[1.0, 0.0]] * 4))
    expected = [[0.540302, 0.841471], [0.99995, 0.01], [-0.416147, 0.909297], [0.9998, 0.019999]]
    assert torch.allclose(table[7], torch.tensor(expected), atol=1e-6)


def test_bfloat16_weights_keep_the_rotary_table_in_float32() -> None:
    model = make(positions="rope2d").to(torch.bfloat16)
    assert model._table.dtype == torch.float32
    assert generate(model, torch.tensor([0, 1]), guidance=Guidance(2.0)).shape == (2, 16)


ALL_SIZES = {"gpt": SIZES, "rar": RAR_SIZES}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in GENERATORS for size in ALL_SIZES[name]])
def test_every_size_builds(name: str, size: str) -> None:
    with torch.device("meta"):
        numbers = {"codebook_size": 1024, "num_tokens": 64, "num_classes": 13}
        model = build("autoregressive.models:GENERATORS", {"name": name, "size": size, **numbers})
        logits = model(torch.zeros(2, 64, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    assert logits.shape == (2, 64, 1024)


@pytest.mark.parametrize(("options", "message"), [
    ({"size": "XLL"}, "XL"), ({"width": 65}, "divisible"), ({"positions": "rope2d", "num_tokens": 12}, "square"),
    ({"adaln": "ful"}, "full"), ({"positions": "rope"}, "rope2d"), ({"codebook_size": None}, "codebook_size"),
    ({"droput": 0.1}, "dropout"), ({"positions": "rope2d", "width": 24}, "divisible by 4"),
])
def test_wrong_options_name_what_mends_them(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)
