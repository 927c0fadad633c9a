"""The tokenizer's parts: contracts of every table entry and the properties the papers rely on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from common.config import build, resolve
from common.errors import UserError
from tokenizer.config import TokenizerConfig
from tokenizer.layers.query_init import multi_level_pooling
from tokenizer.layers.resnet import AdaptiveGroupNorm, GroupNorm, depth_to_space, space_to_depth
from tokenizer.layers.transformer import Attention
from tokenizer.model import Tokenizer
from tokenizer.quantizers.vq import VectorQuantizer, rotate

CNN = {"channels": 32, "multipliers": [1, 1, 1, 1]}
TINY = {"channels": 32, "multipliers": [1, 1], "patch": 4}
WIDTHS = {"width": 32, "layers": 2, "heads": 2}


def parts(kind: str, cnn: dict[str, object]) -> dict[str, dict[str, object]]:
    """Encoder and decoder of one kind: `hybrid_1d`, `hybrid_2d`, `cnn`, or `tokenizer.tiny:Tiny1d` or `...:TinyCnn`."""
    sides = {side: kind + (side.capitalize() if ":" in kind else "") for side in ("encoder", "decoder")}
    if "cnn" in kind.lower():
        return {side: {"name": name, **cnn} for side, name in sides.items()}
    made = {side: {"name": name, "cnn": cnn, "transformer": WIDTHS} for side, name in sides.items()}
    return {"encoder": made["encoder"], "decoder": {**made["decoder"], "semantic_head": None}}


def make(kind: str = "tokenizer.tiny:Tiny1d", tokens: int = 16, redundant: int = 8, **model: object) -> Tokenizer:
    torch.manual_seed(0)
    config = {
        "image_size": 32, "z_channels": 32, "layout": {"num_tokens": tokens, "redundant": redundant},
        **parts(kind, TINY if "tiny" in kind else CNN), "quantizer": {"name": "vq", "codebook_size": 64},
    }  # fmt: skip
    return Tokenizer(resolve(TokenizerConfig, {**config, **model})).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", ["hybrid_1d", "hybrid_2d", "cnn", "tokenizer.tiny:Tiny1d", "tokenizer.tiny:TinyCnn"])
def test_images_to_codes_and_back(kind: str) -> None:
    model = make(kind)
    codes = model.encode(images())
    assert codes.shape == (3, model.num_tokens) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < model.codebook_size
    assert model.decode(codes).shape == (3, 3, 32, 32)


@pytest.mark.parametrize("kind", ["hybrid_1d", "tokenizer.tiny:Tiny1d"])
def test_a_prefix_decodes_as_if_the_rest_were_never_there(kind: str) -> None:
    model = make(kind)
    codes = model.encode(images())
    for k in (1, 3, 8, 16):
        assert torch.allclose(model.decode(codes, k), model.decode(codes[:, :k]), atol=1e-4)
    assert not torch.allclose(model.decode(codes, 1), model.decode(codes, 16))


@pytest.mark.parametrize("kind", ["hybrid_1d", "tokenizer.tiny:Tiny1d"])
def test_mixed_lengths_decode_together_as_one_by_one(kind: str) -> None:
    model = make(kind)
    tokens = [sequence[:k] for sequence, k in zip(model.tokenize(images()), (16, 1, 5), strict=True)]
    together = model.detokenize(tokens)
    alone = torch.cat([model.detokenize([sequence]) for sequence in tokens])
    # The released decoder's norms enlarge rounding errors: its activations are still far below 1.
    assert torch.allclose(together, alone, atol=1e-4 if kind == "hybrid_1d" else 1e-5)


def test_redundant_tokens_are_encoded_but_not_shown() -> None:
    model = make()
    latents, _ = model.latents(images())
    assert latents.shape[-1] == 16 + 8
    vectors = model.quantizer(latents).vectors
    assert torch.equal(model.decode_vectors(vectors).images, model.decode_vectors(vectors[..., :16]).images)


def test_padding_queries_equal_their_twins_before_positions() -> None:
    encoder = make().encoder.transformer
    queries = encoder.queries(torch.randn(2, 16, 32))
    assert queries.shape == (2, 24, 32) and torch.equal(queries[:, 8:16], queries[:, 16:])


def test_multi_level_cells_follow_the_worked_example() -> None:
    pooled = multi_level_pooling(16, 4) @ torch.arange(16.0)
    assert pooled.tolist() == [7.5, 7.5, 6.5, 8.5, 2.5, 4.5, 10.5, 12.5, 2, 3, 4, 5, 10, 11, 12, 13]
    with pytest.raises(UserError, match="power of two"):
        multi_level_pooling(12, 4)
    with pytest.raises(UserError, match="divides"):
        multi_level_pooling(64, 4)


def test_depth_to_space_is_in_dcr_order() -> None:
    planes = depth_to_space(torch.arange(8.0).reshape(1, 8, 1, 1), 2)
    assert planes.tolist() == [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]
    x = torch.randn(2, 12, 3, 3)
    assert torch.equal(space_to_depth(depth_to_space(x, 2), 2), x)


def test_adaptive_group_norm_uses_the_unbiased_variance() -> None:
    layer = AdaptiveGroupNorm(4, 32)
    torch.nn.init.zeros_(layer.beta.weight)
    style, x = torch.randn(2, 4, 3, 3), torch.randn(2, 32, 3, 3)
    scale = layer.gamma((style.flatten(2).var(2, unbiased=True) + 1e-6).sqrt()) + 0
    expected = F.group_norm(x, 32, eps=1e-6) * scale[:, :, None, None] + layer.beta.bias[None, :, None, None]
    assert torch.allclose(layer(x, style), expected, atol=1e-5)


def test_attention_equals_torchs() -> None:
    ours = Attention(32, 4)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    q, k, v = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    hidden = torch.arange(7)[None] >= torch.tensor([[7], [4]])
    assert torch.allclose(ours(q, k, v, hidden), theirs(q, k, v, key_padding_mask=hidden)[0], atol=1e-5)


def test_rotation_gives_the_code_and_a_rotated_gradient() -> None:
    rows = torch.tensor([[0.6, 0.8]], requires_grad=True)
    code = torch.tensor([[0.0, 1.0]])
    out = rotate(rows, code)
    assert torch.allclose(out, code, atol=1e-5)
    (grad,) = torch.autograd.grad(out, rows, torch.tensor([[1.0, 2.0]]))
    rotation = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    turned = torch.tensor([[1.0, 2.0]]) @ rotation
    along = (turned * rows.detach()).sum() * rows.detach()  # the row's length gets no gradient
    assert torch.allclose(grad, turned - along, atol=1e-5)


def quantizer(**config: object) -> VectorQuantizer:
    torch.manual_seed(0)
    return build("tokenizer.quantizers:QUANTIZERS", {"name": "vq", "codebook_size": 32, "codebook_dim": 4, **config})


def test_quantizer_losses_on_a_small_example() -> None:
    layer = build("tokenizer.quantizers:QUANTIZERS", {"name": "vq", "codebook_size": 2, "codebook_dim": 2}).train()
    layer.embedding.weight.data = torch.eye(2)
    done = layer(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    assert done.codes.tolist() == [[1]]
    assert done.losses["vq"].item() == pytest.approx(0.2) and done.losses["commit"].item() == pytest.approx(0.05)


def test_usage_counts_the_codes_of_the_window_only() -> None:
    layer = quantizer().train()
    assert layer.usage() == 0
    done = layer(torch.randn(2, 4, 3, 3))
    assert layer.usage().item() == pytest.approx(done.codes.unique().numel() / 32)
    layer._remember(torch.zeros(70000, dtype=torch.int64))
    assert layer.usage().item() == pytest.approx(1 / 32)


def test_mistakes_end_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"expected floats \(B,3,32,32\)"):
        make().encode(torch.zeros(1, 3, 16, 16))
    images = torch.rand(2, 3, 32, 32)
    for wrong in (images[0], images[:, :1], images.permute(0, 2, 3, 1), (images * 255).to(torch.uint8), images * 255):
        with pytest.raises(UserError, match=r"expected .*\[-1,1\]"):
            make().encode(wrong)
    with pytest.raises(UserError, match="num_tokens=17"):
        make().decode(torch.zeros(1, 16, dtype=torch.int64), 17)
    with pytest.raises(UserError, match="do not fit"):
        make("hybrid_1d", decoder={"name": "cnn", **CNN})
    with pytest.raises(UserError, match="redundant"):
        make(tokens=16, redundant=17)
    with pytest.raises(UserError, match="decodes exactly 16"):
        make("hybrid_2d").decode(torch.zeros(1, 8, dtype=torch.int64))


@pytest.mark.parametrize("channels", [32, 128])
def test_the_norm_of_a_channels_last_map_is_as_accurate_as_a_contiguous_ones(channels: int) -> None:
    x, layer = 100 + torch.randn(1, channels, 8, 8), GroupNorm(channels)
    expected = F.group_norm(x.double(), 32, eps=1e-6).float()
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(layer(given), expected, rtol=0, atol=1e-4)
