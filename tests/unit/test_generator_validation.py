"""What validation of a generator measures, and that training goes on in training mode after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autoregressive.config import TrainConfig
from autoregressive.train import GeneratorTrainee, Source
from common import config
from common.codes import import_npy
from common.dist import World

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def codes(tmp_path: Path) -> np.ndarray:
    """The codes (9,8) below 16 of the store tmp_path/codes, whose image i is of class i % 3."""
    found = np.random.default_rng(0).integers(0, 16, (9, 8))
    for folder in ("codes_npy", "labels_npy"):
        (tmp_path / folder).mkdir()
    for index, row in enumerate(found):
        np.save(tmp_path / f"codes_npy/{index}.npy", row[None])
        np.save(tmp_path / f"labels_npy/{index}.npy", np.array([index % 3]))
    import_npy(tmp_path / "codes_npy", tmp_path / "labels_npy", tmp_path / "codes", 16)
    return found


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_held_out_loss_is_that_of_evaluation_mode(tmp_path: Path, codes: np.ndarray, ema_decay: float) -> None:
    given: dict[str, Any] = {
        "model": {"name": "gpt", "size": "tiny", "token_dropout": 0.5, "codebook_size": 16, "num_tokens": 8,
                  "num_classes": 3},
        "data": {"codes": str(tmp_path / "codes"), "val_codes": str(tmp_path / "codes"), "batch_size": 4},
        "run": {"out": "x", "steps": 4, "precision": "none", "validate_every": 2}, "ema_decay": ema_decay,
    }  # fmt: skip
    settings = config.resolve(TrainConfig, given)
    trainee = GeneratorTrainee(settings, CPU, Source(settings, CPU))
    with torch.no_grad():
        trainee.model.output.weight.normal_(std=0.5)
    found = trainee.validate()
    assert all(part.training for part in trainee.wrapped.modules())
    model = trainee.model.eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(codes), torch.arange(9) % 3)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(codes).flatten())
    assert found["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert ("val/loss_ema" in found) == (ema_decay > 0)
    assert ema_decay == 0 or found["val/loss_ema"] != pytest.approx(found["val/loss"], rel=1e-3)
