"""`tokenize` and `detokenize`: sequences of different lengths, prefixes, redundant tokens."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from tests.unit.test_released_files import SMALL, make
from tokenizer.model import Tokenizer

FLEXIBLE = "hybrid_1d"


def images(model: Tokenizer, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, model.image_size, model.image_size, generator=generator) * 2 - 1


@pytest.mark.parametrize("lengths", [(64, 1, 17), (5, 5, 5), (64, 64, 64), (96, 2, 64)])
def test_any_lengths_decode_together_as_one_by_one(lengths):
    model = make(FLEXIBLE)
    latents, _ = model.latents(images(model))
    codes = model.quantizer(latents).codes
    assert codes.shape == (3, 96)
    sequences = [row[:length] for row, length in zip(codes, lengths, strict=True)]
    together = model.detokenize(sequences)
    alone = torch.cat([model.detokenize([sequence]) for sequence in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 2, 17, 63, 64])
def test_decoding_k_of_the_tokens_is_decoding_the_first_k(kept):
    model = make(FLEXIBLE)
    codes = model.encode(images(model))
    prefixes = model.tokenize(images(model), kept)
    assert all(torch.equal(prefix, row[:kept]) for prefix, row in zip(prefixes, codes, strict=True))
    torch.testing.assert_close(model.decode(codes, kept), model.detokenize(prefixes))


def test_redundant_codes_change_nothing():
    """All codes and the first N of them decode to the same image, however they are passed."""
    model = make(FLEXIBLE)
    latents, _ = model.latents(images(model))
    everything = model.quantizer(latents).codes
    shown = model.decode(everything[:, :64])
    assert torch.equal(model.decode(everything), shown)
    assert torch.equal(model.detokenize(list(everything)), shown)
    assert torch.equal(model.encode(images(model)), everything[:, :64])


@pytest.mark.parametrize("name", sorted(set(SMALL) - {FLEXIBLE}))
def test_other_tokenizers_take_all_tokens_or_none(name):
    model = make(name)
    tokens = model.tokenize(images(model, 1))
    assert model.detokenize(tokens).shape == (1, 3, model.image_size, model.image_size)
    with pytest.raises(UserError, match=f"decodes {model.num_tokens} to {model.num_tokens}"):
        model.detokenize([tokens[0][:-1]])


def test_impossible_lengths_are_refused():
    model = make(FLEXIBLE)
    for tokens in ([], [torch.zeros(0, dtype=torch.int64)], [torch.zeros(97, dtype=torch.int64)]):
        with pytest.raises(UserError, match="decodes 1 to 64"):
            model.detokenize(tokens)
    for kept in (0, 65):
        with pytest.raises(UserError, match="makes 1 to 64"):
            model.tokenize(images(model), kept)
