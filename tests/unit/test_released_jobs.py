"""The jobs take released files where they take runs, without being told what is inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive import extract_codes
from autoregressive import sample as sampling
from autoregressive.config import ExtractConfig, SampleConfig
from autoregressive.models.gpt import GPT
from autoregressive.paper_flags import EXTRACT_FLAGS, SAMPLE_FLAGS
from autoregressive.released import write_released as write_generator
from common import config
from common.checkpoint import fingerprint
from common.errors import UserError
from tests.toys import read_npz
from tests.unit.test_released_files import make
from tokenizer.released import write_released as write_tokenizer

SIZES = {"size": "tiny", "codebook_size": 40, "num_classes": 5}


@pytest.fixture
def files(tmp_path) -> Path:
    torch.manual_seed(0)
    write_tokenizer(make("hybrid_1d"), tmp_path / "vq.pt")
    write_tokenizer(make("cnn"), tmp_path / "conv.pt")
    write_generator(GPT(GPT.Config(**SIZES, num_tokens=64)), tmp_path / "gpt.pt")
    write_generator(GPT(GPT.Config(**SIZES, num_tokens=64, positions="rope2d")), tmp_path / "gpt2d.pt")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name / "0.png")
    return tmp_path


def sample(files: Path, *words: object) -> Path:
    words = [str(word) for word in ("--sample-dir", files / "out", "--num-fid-samples", 3, "--device", "cpu", *words)]
    return sampling.run(config.parse(SampleConfig, words, aliases=SAMPLE_FLAGS))


def test_sampling_from_released_files(files):
    packed = sample(files, "--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "vq.pt", "--cfg-scale", 2.0)
    assert read_npz(packed).shape == (3, 16, 16, 3)
    settings = json.loads((files / "out/settings.json").read_text())
    assert settings["generator"] == fingerprint(files / "gpt.pt")


def test_sampling_with_chosen_classes_names_them_by_number(files):
    sample(files, "--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "vq.pt", "--class-idx", "0,4")
    assert {path.name for path in (files / "out").iterdir() if path.is_dir()} == {"class_0_0", "class_4_4"}


def test_a_2d_generator_makes_as_many_codes_as_the_tokenizer_has(files):
    """Neither file says how large the images are."""
    words = ("--gpt-ckpt", files / "gpt2d.pt", "--vq-ckpt", files / "conv.pt", "--image-size", 16)
    assert read_npz(sample(files, *words)).shape == (3, 16, 16, 3)


def test_codes_are_extracted_by_a_released_file(files):
    words = ("--data-path", files / "images", "--vq-ckpt", files / "vq.pt", "--code-path", files / "codes")
    words = [str(word) for word in (*words, "--device", "cpu")]
    store = extract_codes.run(config.parse(ExtractConfig, words, aliases=EXTRACT_FLAGS))
    meta = json.loads((store / "meta.json").read_text())
    assert (meta["num_tokens"], meta["codebook_size"]) == (64, 40)
    assert meta["tokenizer"] == fingerprint(files / "vq.pt")


def test_files_in_each_others_place_are_refused(files):
    with pytest.raises(UserError, match="belongs to --gpt-ckpt"):
        sample(files, "--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "gpt.pt")
    with pytest.raises(UserError, match="belongs to --vq-ckpt"):
        sample(files, "--gpt-ckpt", files / "vq.pt", "--vq-ckpt", files / "vq.pt")
    with pytest.raises(UserError, match="--gpt-model is GPT-XL"):
        sample(files, "--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "vq.pt", "--gpt-model", "GPT-XL")
