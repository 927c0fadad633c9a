"""Logged figures in absolute terms: by hand, or by scikit-image from the files that the jobs write."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from autoregressive.train import GeneratorTrainee
from common.dist import World
from evaluations import reconstruction
from evaluations.reconstruction import ReconstructionConfig
from tests import toys
from tests.toys import read_npz
from tokenizer.model import View
from tokenizer.train import TokenizerTrainee

ALONE = World(0, 1, torch.device("cpu"))


def test_figures_of_a_reconstruction_are_scikit_images_on_what_the_files_hold(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "images", counts=(2, 1, 2), side=(32, 32))
    vq = toys.save_tokenizer(tmp_path / "vq")
    results = reconstruction.run(ReconstructionConfig(
        vq_ckpt=str(vq), data_path=str(tmp_path / "images"), sample_dir=str(tmp_path / "out"), device="cpu"
    ))  # fmt: skip
    paths = sorted((tmp_path / "images").rglob("*.png"))
    originals = [np.asarray(Image.open(path)) / 255 for path in paths]
    pairs = list(zip(originals, read_npz(tmp_path / "out/tokens_0016.npz") / 255, strict=True))
    expected = {
        "psnr": [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs],
        "ssim": [structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in pairs],
        "ssim_data_range_2": [structural_similarity(a, b, channel_axis=-1, data_range=2.0) for a, b in pairs],
    }
    means = {name: pytest.approx(np.mean(values), rel=1e-5) for name, values in expected.items()}
    assert results["tokens"]["16"] == means


class Grey(nn.Module):
    """Decodes everything to 0.5; images are in [-1,1]."""

    image_size, num_tokens = 32, 16

    def encode_vectors(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode_vectors(self, images: torch.Tensor, num_tokens: int | None) -> View:
        return View(torch.full_like(images, 0.5))


def test_the_validations_psnr_is_in_db_of_the_whole_range(tmp_path: Path) -> None:
    """White images against 0.5: squared error 1/4 of a range of 2, 10 log10(2^2 / 0.25) = 12.04 dB."""
    (tmp_path / "white").mkdir()
    for index in range(3):
        Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(tmp_path / "white" / f"{index}.png")
    run = SimpleNamespace(precision="none")
    config = SimpleNamespace(val_root=str(tmp_path), regularizers={}, run=run)
    grey = Grey()
    stub: Any = SimpleNamespace(
        config=config, tokenizer=grey, world=ALONE, regularizers=[], evaluating=lambda: contextlib.nullcontext(grey)
    )
    assert TokenizerTrainee.validate(stub) == {"val/psnr_16": pytest.approx(10 * math.log10(16), abs=1e-4)}


@dataclasses.dataclass
class Held:
    """Three images of two codes."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"codes": np.array([0, 1]), "label": 0, "index": index}


class Table(nn.Module):
    """Logits ln p of four codes at every position."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(shares).log())

    def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*codes.shape, 4)


@pytest.mark.parametrize("average", [False, True])
def test_the_validation_loss_is_that_of_the_weights_that_jobs_use_by_default(average: bool) -> None:
    """Codes 0 and 1 of probability 1/2 and 1/4: (ln 2 + ln 4) / 2 nats for the trained weights."""
    model, mean = Table(0.5, 0.25, 0.125, 0.125), Table(0.25, 0.25, 0.25, 0.25)
    run, data = SimpleNamespace(precision="none"), SimpleNamespace(batch_size=2)
    stub: Any = SimpleNamespace(
        config=SimpleNamespace(run=run, data=data), run=run, world=ALONE, model=model, wrapped=model,
        ema=SimpleNamespace(module=mean) if average else None,
        held_out=Held(), source=SimpleNamespace(num_tokens=2),
    )
    stub._held_out_loss = lambda *given: GeneratorTrainee._held_out_loss(stub, *given)
    expected = {"val/loss": pytest.approx(1.5 * math.log(2))}
    if average:
        expected["val/loss_ema"] = pytest.approx(2 * math.log(2))
    assert GeneratorTrainee.validate(stub) == expected
