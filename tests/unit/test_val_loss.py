"""Validation loss: every code of every image counts once, on one rank and on two."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F

import autoregressive
import tokenizer as tokenizers
from common import config
from common.data import ImageFolder
from common.errors import UserError
from common.images import from_pixels
from evaluations import val_loss
from evaluations.val_loss import FLAGS, ValLossConfig
from tests import toys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("val_loss")
    toys.write_images(root / "images", counts=(4, 2, 1))
    toys.save_tokenizer(root / "vq")
    toys.save_generator(root / "gpt")
    return root


def measure(made: Path, *words: object) -> dict[str, Any]:
    common = ["--gpt-ckpt", made / "gpt", "--vq-ckpt", made / "vq", "--data-path", made / "images", "--device", "cpu"]
    return val_loss.run(config.parse(ValLossConfig, [str(word) for word in (*common, *words)], aliases=FLAGS))


def expected(made: Path) -> torch.Tensor:
    """Cross-entropy (images, codes), one image at a time."""
    model, tokenizer = autoregressive.load(made / "gpt"), tokenizers.load(made / "vq")
    rows = []
    for item in (folder := ImageFolder(made / "images", 32)):
        codes = tokenizer.encode(from_pixels(torch.from_numpy(item["pixels"])[None]))
        logits = model(codes, torch.tensor([item["label"]]))
        rows.append(F.cross_entropy(logits[0], codes[0], reduction="none"))
        if len(rows) == len(folder):
            break
    return torch.stack(rows).detach()


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_batch_size_does_not_weigh(made: Path, tmp_path: Path, size: int) -> None:
    found = measure(made, "--per-proc-batch-size", size, "--out", tmp_path / "a.json", "--quant-way=vq")
    losses = expected(made)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert np.allclose(found["position_losses"], losses.mean(dim=0), rtol=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"])) and found["images"] == 7


def test_a_folder_without_some_classes_has_the_numbers_of_the_others(made: Path, tmp_path: Path) -> None:
    toys.write_images(tmp_path / "some", counts=(4, 2, 1))
    (tmp_path / "some/apple").rename(tmp_path / "apple")
    found = measure(made, "--data-path", tmp_path / "some", "--out", tmp_path / "x.json")
    assert found["loss"] == pytest.approx(expected(made)[4:].mean().item(), rel=1e-5)
    (tmp_path / "some/bird").rename(tmp_path / "some/dog")
    with pytest.raises(UserError, match="dog"):
        measure(made, "--data-path", tmp_path / "some", "--out", tmp_path / "x.json")


def _rank(rank: int, made: Path, out: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    measure(made, "--out", out)


def test_two_ranks_measure_what_one_does(made: Path, tmp_path: Path, free_port: int) -> None:
    """Seven images: the ranks' shares are three and four, so a mean of means would differ."""
    torch.multiprocessing.spawn(_rank, (made, tmp_path / "two.json", free_port), nprocs=2)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["loss"] == pytest.approx(expected(made).mean().item(), rel=1e-5)


def test_a_result_lies_in_the_run_and_is_reused_for_the_same_question_only(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    first = measure(made)
    assert json.loads((made / "gpt/val_loss.json").read_text()) == first
    assert measure(made) == first and "measured before" in capsys.readouterr().out
    assert measure(made, "--num-images", 3)["loss"] != first["loss"]
    assert measure(made, "--precision", "fp16")["question"]["precision"] == "bf16"


def test_what_does_not_fit_is_one_sentence(made: Path) -> None:
    for words, message in (
        (["--code-path", made], "either images"), (["vq_ckpt=null"], "need a tokenizer"), (["--image-size", 64], "32"),
        (["--gpt-model", "GPT-B"], "tiny"),
    ):
        with pytest.raises(UserError, match=message):
            measure(made, *words)
