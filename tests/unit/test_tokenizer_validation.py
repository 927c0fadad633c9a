"""What validation of a tokenizer measures, and that training goes on in training mode after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import config
from common.dist import World
from tests import toys
from tokenizer.config import TrainConfig
from tokenizer.layout import Layout
from tokenizer.model import Pass, View
from tokenizer.regularizers.base import Plan
from tokenizer.regularizers.semantic import Semantic
from tokenizer.train import TokenizerTrainee

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return toys.write_images(tmp_path / "images", counts=(2, 1, 2), side=(32, 32))


def trainee(images: Path, *words: str, **changes: Any) -> TokenizerTrainee:
    given = {
        "model": toys.TOKENIZER, "adversary": None, "losses": {"perceptual": None}, "val_root": str(images),
        "data": {"root": str(images)}, "ema_decay": 0.0, "run": {"out": "x", "steps": 4, "precision": "none"},
        "regularizers": {"nested_dropout": {}}, **changes,
    }  # fmt: skip
    return TokenizerTrainee(config.resolve(TrainConfig, given), CPU)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_psnr_is_that_of_pixels_between_0_and_1(images: Path, ema_decay: float) -> None:
    made = trainee(images, ema_decay=ema_decay)
    found = made.validate()
    model = made.tokenizer.eval()
    for kept in (2, 16):
        ratios = []
        for path in sorted(images.rglob("*.png")):
            original = np.asarray(Image.open(path).convert("RGB")).astype(np.float64) / 255
            with torch.no_grad():
                codes = model.encode(torch.from_numpy(original * 2 - 1).float().permute(2, 0, 1)[None])
                decoded = model.decode_vectors(model.vectors(codes), kept).images
            shown = decoded[0].permute(1, 2, 0).double().numpy().clip(-1, 1) / 2 + 0.5
            ratios.append(10 * np.log10(1 / np.square(shown - original).mean()))
        assert found[f"val/psnr_{kept}"] == pytest.approx(np.mean(ratios), abs=1e-2)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_goes_on_in_training_mode(images: Path, ema_decay: float) -> None:
    made = trainee(images, ema_decay=ema_decay)
    made.validate()
    assert all(module.training for module in made.wrapped.modules())


def test_the_semantic_weight_ends_at_the_redundant_tokens(images: Path) -> None:
    """Its default end is num_tokens + redundant, and what is added up has that weight."""
    semantic = Semantic.__new__(Semantic)
    semantic.config = Semantic.Config(weight=0.5, schedule="linear")
    target = torch.randn(1, 4, 8)
    semantic.teacher = lambda shown: target
    done = Pass([View(torch.zeros(1))], None)
    done.extra |= {"semantic": target, "semantic_target": target}
    for kept, expected in ((1, 0.5), (16, 0.5 * 8 / 23), (24, 0.0)):
        plan = Plan(0, 0, 1, 0, Layout(num_tokens=16, redundant=8), lengths=[kept])
        assert semantic.losses(target, done, plan)["semantic"].item() == pytest.approx(-expected, abs=1e-6)


@pytest.mark.parametrize("value", ["false", "null"])
def test_a_regularizer_can_be_switched_off(images: Path, tmp_path: Path, value: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("regularizers: {nested_dropout: {min_tokens: 2}, shortcut: {}}\n")
    words = ["--config", str(path), "data.root=x", "run.out=x", "run.steps=1", f"regularizers.nested_dropout={value}"]
    assert config.parse(TrainConfig, words).regularizers.keys() == {"shortcut"}
    made = trainee(images, regularizers={"nested_dropout": False})
    assert len(made.regularizers) == 0 and made.plan(2, 0).lengths == [None]


def test_gradients_of_micro_batches_are_averaged(images: Path) -> None:
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for accumulate in (1, 2):
        run = {"out": "x", "steps": 4, "precision": "none", "accumulate": accumulate}
        made = trainee(images, run=run, optim={"max_grad_norm": 0.0}, regularizers={})
        made.step({"pixels": pixels}, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in made.tokenizer.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()
