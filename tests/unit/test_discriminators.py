"""Discriminators; DINO's and its augmentation without DINO's weights."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from tokenizer.discriminators.diffaug import NUM_UNIFORMS, augment
from tokenizer.discriminators.dino import DinoDiscriminator, FrozenDino, LocalBatchNorm, fit
from tokenizer.discriminators.efficientnet import EfficientNetDiscriminator
from tokenizer.discriminators.stylegan import Block
from tokenizer.layers.vit import VitConfig

SIZES = {"width": 32, "layers": 3, "heads": 2}


@pytest.fixture
def judge() -> DinoDiscriminator:
    torch.manual_seed(0)
    config = DinoDiscriminator.Config(depths=[0, 2], augment=0.0, **SIZES)
    return DinoDiscriminator(config, FrozenDino(VitConfig(**SIZES), config.depths))


def test_only_the_heads_are_trained_and_saved(judge):
    assert judge.state_dict().keys() and all(key.startswith("heads.") for key in judge.state_dict())
    assert all(parameter.requires_grad for parameter in judge.parameters())
    assert not any(parameter.requires_grad for parameter in judge.backbone.parameters())
    images = torch.rand(2, 3, 224, 224).requires_grad_()
    logits = judge(images)
    assert logits.shape == (2, 3 * 196)
    logits.mean().backward()
    assert images.grad.abs().sum() > 0 and judge.heads[0][0][0].weight_orig.grad is not None
    assert all(parameter.grad is None for parameter in judge.backbone.parameters())


def test_embedded_heads_count_alike_and_are_saved_alone():
    torch.manual_seed(0)
    judge = EfficientNetDiscriminator(EfficientNetDiscriminator.Config(strides=[8, 32], width=4))
    assert all(key.startswith("heads.") for key in judge.state_dict())
    assert not any(parameter.requires_grad for parameter in judge.backbone.parameters())
    images = torch.rand(2, 3, 64, 64).requires_grad_()
    logits = judge(images)
    assert logits.shape == (2, 2, 8, 8) and logits[0, 1].unique().numel() == 2 * 2
    logits.mean().backward()
    assert images.grad.abs().sum() > 0
    assert judge.double().backbone.stem.weight.dtype == torch.float64


def test_a_narrow_stylegan_block_learns_from_channels_last_maps():
    """torch 2.13's backward of a strided 1 x 1 convolution of eight such channels corrupts memory on CPUs."""
    torch.manual_seed(0)
    block, maps = Block(8, 8), torch.rand(2, 8, 64, 64)
    gradients = []
    for given in (maps, maps.to(memory_format=torch.channels_last)):
        given = given.detach().requires_grad_()
        gradients.append(torch.autograd.grad(block(given).square().sum(), [given, *block.parameters()]))
    for plain, last in zip(*gradients, strict=True):
        assert (plain - last).abs().max() <= 1e-4 * plain.abs().max()


def test_the_backbone_moves_with_it(judge):
    judge.double()
    assert judge.backbone.vit.pos_embed.dtype == torch.float64
    judge.to("meta")
    assert judge.backbone.vit.pos_embed.device.type == "meta"


def test_the_keys_bias_changes_no_attention(judge):
    """DINO's file has one; zeroing it, as the papers do, leaves every feature what it was."""
    state = {key.removeprefix("vit."): value.clone() for key, value in judge.backbone.state_dict().items()}
    for key in state:
        if key.endswith("qkv.bias"):
            torch.nn.init.normal_(state[key])
    images = torch.rand(1, 3, 224, 224)
    judge.backbone.load_state_dict({key if key.startswith("x_s") else f"vit.{key}": v for key, v in state.items()})
    before = judge.backbone(images)
    judge.backbone.load(state)
    assert (judge.backbone.vit.blocks[0].attn.qkv.bias[32:64] == 0).all()
    for a, b in zip(before, judge.backbone(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_missing_backbone_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"curl -L .*dino_deitsmall16_pretrain\.pth.*patchgan"):
        DinoDiscriminator(DinoDiscriminator.Config(backbone_path=str(tmp_path / "nothing.pth")))


def test_a_backbone_file_is_loaded(judge, tmp_path):
    state = {key.removeprefix("vit."): value for key, value in judge.backbone.state_dict().items()}
    torch.save({key: value for key, value in state.items() if not key.startswith("x_s")}, tmp_path / "dino.pth")
    config = DinoDiscriminator.Config(depths=[0, 2], backbone_path=str(tmp_path / "dino.pth"), **SIZES)
    again = DinoDiscriminator(config)
    assert torch.equal(again.backbone.vit.pos_embed, judge.backbone.vit.pos_embed)


@pytest.mark.parametrize("side", [96, 224, 256])
def test_every_size_is_brought_to_the_backbones(judge, side):
    assert judge(torch.rand(1, 3, side, side)).shape == (1, 588)
    assert fit(torch.rand(1, 3, side, side)).shape == (1, 3, 224, 224)


def test_local_batch_norm_does_not_look_over_its_group():
    norm = LocalBatchNorm(4)
    x = torch.randn(16, 4, 5)
    torch.testing.assert_close(norm(x), torch.cat([norm(x[:8]), norm(x[8:])]))
    with pytest.raises(UserError, match=r"got 9 images.*data\.batch_size"):
        norm(torch.randn(9, 4, 5))


def test_augmentation_is_fresh_in_training_and_absent_in_evaluation(judge):
    judge.config.augment = 1.0
    images = torch.rand(2, 3, 224, 224)
    for layer in judge.heads.modules():
        if isinstance(layer, torch.nn.Conv1d):
            layer.eval()  # no power iteration, so that only the augmentation differs
    judge.training = True
    assert not torch.equal(judge(images), judge(images))
    judge.eval()
    assert torch.equal(judge(images), judge(images))


def test_augmentation_in_the_middle_of_its_range_changes_nothing():
    images = torch.rand(2, 3, 32, 32)
    middle = torch.full((NUM_UNIFORMS, 2), 0.5)
    torch.testing.assert_close(augment(images, middle, (True, True, False)), images)
    cut = augment(images, middle, (False, False, True))
    assert (cut != images).any(dim=1).sum() == 2 * 6 * 6
    assert torch.equal(augment(images, torch.rand(NUM_UNIFORMS, 2), (False, False, False)), images)


def test_translation_moves_whole_pixels_and_fills_with_zeros():
    images = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    uniforms = torch.full((NUM_UNIFORMS, 1), 0.5)
    uniforms[0], uniforms[1] = 0.999, 0.0  # one row up, one column to the right
    moved = augment(images, uniforms, (True, False, False))
    assert torch.equal(moved[0, 0, :-1, 1:], images[0, 0, 1:, :-1])
    assert (moved[0, 0, -1] == 0).all() and (moved[0, 0, :, 0] == 0).all()
