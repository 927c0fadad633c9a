"""Parts from outside the tree: one file and one line of a config each, as the README promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common import config
from common.dist import World
from common.errors import UserError
from tests import toys
from tokenizer.config import TrainConfig
from tokenizer.regularizers.base import Plan
from tokenizer.regularizers.nested_dropout import NestedDropout
from tokenizer.train import TokenizerTrainee, check_pairs

CPU = World(0, 1, torch.device("cpu"))
REGULARIZER = '''
from dataclasses import dataclass
from common.config import opt
from tokenizer.model import View
from tokenizer.regularizers.base import Regularizer

class Noise(Regularizer):
    """Adds noise to code vectors, decodes a second view from the clean ones, and draws on the semantic head."""
    needs_latents = needs_head = trains_prefixes = True

    @dataclass
    class Config:
        size: float = opt(0.1, "deviation")

    def plan(self, plan):
        plan.lengths.append(3)

    def vectors(self, tokenizer, latents, quantized, vectors, plan):
        return vectors + self.config.size * latents.detach().sign()

    def after_decode(self, tokenizer, images, done, plan):
        done.views.append(tokenizer.decode_vectors(done.quantized.vectors))
        done.extra["noise"] = tokenizer.semantic_head(done.views[0].features.inner)

    def losses(self, images, done, plan):
        return {"noise": done.extra["noise"].float().square().mean()}
'''
QUANTIZER = '''
from dataclasses import dataclass
from common.config import opt
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_maps, to_rows

class Sign(CodeQuantizer):
    """One bit, of the first channel's sign."""
    @dataclass
    class Config:
        scale: float = opt(1.0, "length of a vector")

    def __init__(self, config):
        super().__init__(config, 2, 1)

    def lookup(self, codes):
        return self.config.scale * (2.0 * codes[..., None] - 1)

    def forward(self, latents):
        rows = to_rows(latents)
        codes = (rows[:, 0] > 0).long()
        if self.training:
            self._remember(codes)
        through = rows + (self.lookup(codes) - rows).detach()
        return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), {})
'''
ENCODER = '''
from tokenizer.tiny import Tiny1dEncoder

class Brighter(Tiny1dEncoder):
    def forward(self, images):
        return super().forward(images + 0.5)
'''
ALONE = '''
from dataclasses import dataclass
from torch import nn
from common.config import opt

class Patches(nn.Module):
    """A 2D encoder of one convolution."""
    @dataclass
    class Config:
        patch: int = opt(4, "pixels per side")

    def __init__(self, config, image_size, z_channels, layout):
        super().__init__()
        self.grid = image_size // config.patch
        self.conv = nn.Conv2d(3, z_channels, config.patch, config.patch)

    def forward(self, images):
        return self.conv(images)
'''


BASE = {
    "model": toys.TOKENIZER, "losses": {"perceptual": None}, "adversary": None, "data": {"root": "x"},
    "run": {"out": "x", "steps": 3, "device": "cpu", "precision": "none"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts' modules can be imported; a base config is in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(json.dumps(BASE))
    for name, text in (("reg", REGULARIZER), ("quant", QUANTIZER), ("enc", ENCODER), ("alone", ALONE)):
        (tmp_path / f"outside_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def trainee(*words: str) -> TokenizerTrainee:
    return TokenizerTrainee(config.parse(TrainConfig, ["--config", "base.yaml", *words]), CPU)


def pixels() -> dict[str, torch.Tensor]:
    return {"pixels": torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)}


def head_gradient(made: TokenizerTrainee) -> torch.Tensor | None:
    return made.tokenizer.semantic_head[0].weight.grad


def test_a_regularizer() -> None:
    made = trainee("regularizers.mine={name: 'outside_reg:Noise', size: 0.3}")
    logged = made.step(pixels(), 0)
    assert logged["train/loss_noise"] > 0 and head_gradient(made) is not None
    alone = trainee()
    alone.step(pixels(), 0)
    assert head_gradient(alone) is None and not any(p.requires_grad for p in alone.tokenizer.semantic_head.parameters())
    with pytest.raises(UserError, match="Noise needs"):
        trainee("regularizers.mine={name: 'outside_reg:Noise'}", "model.decoder.semantic_head=null")
    made.config.freeze = ["encoder", "quant_conv", "quantizer"]
    made.config.data.crop, made.config.data.flip = "center", False
    with pytest.raises(UserError, match=r"regularizers\.mine acts on latents"):
        check_pairs(made.config, None, made.tokenizer)


def test_a_regularizer_of_ours_under_another_key() -> None:
    made = trainee(
        "regularizers.align={name: semantic, teacher: {name: efficientnet_lite0, stride: 8}}",
        "model.decoder.semantic_head.width=40", "regularizers.lengths={name: nested_dropout, min_tokens: 2}",
    )  # fmt: skip
    assert made.step(pixels(), 0)["train/loss_semantic"].isfinite() and head_gradient(made).abs().sum() > 0
    assert isinstance(made.regularizers[1], NestedDropout) and made.plan(2, 0).lengths[0] is not None


def test_a_quantizer() -> None:
    made = trainee("model.quantizer={name: 'outside_quant:Sign', scale: 0.5}")
    assert made.step(pixels(), 0)["train/codebook_usage"] == 1
    codes = made.tokenizer.eval().encode(torch.zeros(1, 3, 32, 32))
    assert codes.shape == (1, 16) and made.tokenizer.decode(codes, 5).shape == (1, 3, 32, 32)


def test_an_encoder() -> None:
    """A subclass of ours decodes prefixes; one that stands alone makes a grid."""
    given = {**toys.TOKENIZER["encoder"], "name": "outside_enc:Brighter"}
    made = trainee(f"model.encoder={json.dumps(given)}")
    assert made.tokenizer.is_1d and made.step(pixels(), 0)["not_finite"] == 0
    words = ("model.encoder={name: 'outside_alone:Patches', patch: 4}", "model.decoder={name: cnn, channels: 32}")
    grid = trainee(*words, "model.decoder.multipliers=[1, 1, 1]", "model.layout={num_tokens: 64, redundant: 0}")
    assert not grid.tokenizer.is_1d and grid.step(pixels(), 0)["not_finite"] == 0
    with pytest.raises(UserError, match="decodes its whole grid"):
        grid.tokenizer.decode(torch.zeros(1, 64, dtype=torch.int64), 5)


def test_a_plan_slices_what_is_drawn_for_the_global_batch() -> None:
    layout = trainee().config.model.layout
    whole = torch.arange(8)
    assert torch.cat([whole[Plan(0, 0, 2, rank, layout).mine] for rank in range(4)]).equal(whole)
