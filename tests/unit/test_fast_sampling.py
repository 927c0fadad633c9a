"""What the fast paths of sampling and tokenizing leave out, or do in another layout or precision, changes no result."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance, guide
from autoregressive.models.gpt import GPT
from common.config import build, resolve
from common.errors import UserError
from tests.unit.test_generators import captions, randomise
from tokenizer.config import TokenizerConfig
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer

SIZES = {"size": "tiny", "codebook_size": 40, "num_tokens": 16}
KINDS = {
    "learned": {"name": "gpt", **SIZES, "num_classes": 5},
    "adaln": {"name": "gpt", **SIZES, "num_classes": 5, "adaln": "full"},
    "rope2d": {"name": "gpt", **SIZES, "num_classes": 5, "positions": "rope2d", "adaln": "simple"},
    "caption": {
        "name": "gpt", **SIZES, "positions": "rope2d", "condition": "caption", "caption_tokens": 6, "caption_width": 12,
    },
    "rar": {"name": "rar", **SIZES, "num_classes": 5},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return randomise(build("autoregressive.models:GENERATORS", KINDS[request.param])).requires_grad_(False)


def asked(model: torch.nn.Module) -> torch.Tensor:
    caption = getattr(model.config, "condition", "class") == "caption"
    return captions(6, 2, 4) if caption else torch.tensor([0, 4, 2])


def test_a_sequence_can_start_with_several_codes_at_once(model: torch.nn.Module) -> None:
    labels, codes = asked(model), torch.randint(40, (3, 16))
    one, many = model.new_cache(3), model.new_cache(3)
    expected = [model.prefill(labels, one)]
    expected += [model.decode_one(codes[:, place - 1], place, one, labels) for place in range(1, 8)]
    torch.testing.assert_close(model.prefill(labels, many, codes[:, :6]), expected[6], rtol=1e-4, atol=1e-4)
    found = model.decode_one(codes[:, 6], 7, many, labels)
    torch.testing.assert_close(found, expected[7], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [
    Guidance(3.0, "step", window_start=0.3, off=1.0), Guidance(3.0, "step", window_start=0.3),
    Guidance(3.0, "rectangular", window_start=0.3, window_end=0.7, off=1.0),
    Guidance(3.0, "constant", interval=4), Guidance(3.0, "power_cosine", power=2.0), Guidance(1.0), Guidance(2.0),
])  # fmt: skip
def test_the_unconditional_half_is_made_up_where_it_was_left_out(model: torch.nn.Module, guidance: Guidance) -> None:
    """Against both halves decoded at every code without any cache."""
    labels = asked(model)
    both = torch.cat((labels, model.null(labels)))
    codes = torch.zeros(3, 16, dtype=torch.int64)
    for place, scale in enumerate(guidance.scales(16)):
        logits = model(codes.repeat(2, 1), both)[:, place]
        codes[:, place] = guide(logits, scale).argmax(-1)
    cache = model.new_cache(8)
    cache.keys.fill_(torch.nan)  # slots that were not filled would show
    found = generate(model, labels, guidance=guidance, sampling=Sampling(greedy=True), cache=cache)
    assert torch.equal(found, codes)


def test_bf16_draws_from_nearly_the_same_distribution() -> None:
    """Total variation between what float32 and bf16 give the next code, averaged over places."""
    torch.manual_seed(0)
    model = GPT(GPT.Config(size="small", codebook_size=256, num_tokens=64, num_classes=5)).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    codes, labels = torch.randint(256, (4, 64)), torch.tensor([0, 1, 2, 3])
    expected = model(codes, labels).softmax(-1)
    found = model.to(torch.bfloat16)(codes, labels).softmax(-1)
    assert expected.max(-1).values.mean() > 0.02  # no uniform guess
    assert (found - expected).abs().sum(-1).mean() / 2 < 0.02


def test_a_tokenizer_in_bf16_finds_the_same_codes_but_for_near_ties() -> None:
    vit = {"width": 64, "layers": 2, "heads": 2}
    cnn = {"channels": 32, "multipliers": [1, 1], "patch": 2}
    settings = resolve(TokenizerConfig, {
        "image_size": 32, "z_channels": 32, "layout": {"num_tokens": 64},
        "encoder": {"name": "tokenizer.tiny:Tiny1dEncoder", "cnn": cnn, "transformer": vit},
        "decoder": {"name": "tokenizer.tiny:Tiny1dDecoder", "cnn": cnn, "transformer": vit, "semantic_head": None},
        "quantizer": {"name": "vq", "codebook_size": 64},
    }, where="model")  # fmt: skip
    torch.manual_seed(0)
    tokenizer = Tokenizer(settings).eval()
    plain, fast = Inference(deepcopy(tokenizer)), Inference(tokenizer, "bf16")
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    codes = plain.encode(pixels)
    assert (fast.encode(pixels) == codes).float().mean() > 0.9
    images = plain.decode(codes)
    found = fast.decode(codes)
    assert found.dtype == torch.float32
    assert (found - images).abs().mean() < 0.1 * images.std()  # eight bits of precision, several layers deep
    with pytest.raises(UserError, match="fp8"):
        Inference(tokenizer, "fp8")
