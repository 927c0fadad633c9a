"""What tokens are worth: figures on made-up counts, and the job's files."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.config import parse
from common.errors import UserError
from evaluations import diagnose as job
from evaluations.diagnose import FLAGS, DiagnoseConfig
from evaluations.metrics.codebook_usage import CodeUsage
from tests.unit.test_tokenizer import make


def test_entropy_use_and_gains_of_a_known_sequence() -> None:
    usage = CodeUsage(4, 8)
    spread, half, idle = torch.arange(16) % 8, torch.arange(16) % 2, torch.zeros(16, dtype=torch.int64)
    usage.update(torch.stack([spread, spread, half, idle], dim=1))
    found = job.summarise({"mse": [0.8, 0.4, 0.3]}, [1, 2, 4], usage)
    assert found["images"] == 16
    assert found["positions"]["entropy"] == pytest.approx([1, 1, math.log(2) / math.log(8), 0])
    assert found["positions"]["usage"] == [1, 1, 0.25, 0.125]
    assert found["gains"]["mse"] == pytest.approx([0.4, 0.05])
    assert found["summary"]["tail_entropy"] == pytest.approx(1 / 6)
    assert found["summary"]["tail_usage"] == pytest.approx(0.1875)
    assert found["summary"]["tail_gain_mse"] == pytest.approx(0.25)
    lines = job.table(found).splitlines()
    assert lines[0] == "| position | codebook use | entropy | mse | gain mse |" and len(lines) == 2 + 4
    assert lines[5] == "| 4 | 0.125 | 0.000 | 0.30000 | 5.00e-02 |"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnose")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(root / "images" / f"{index}.png")
    for kind in ("hybrid_1d", "hybrid_2d"):
        model = make(kind)
        settings = {"model": dataclasses.asdict(model.config)}
        checkpoint.save(root / kind, 1, {"model": model.state_dict()}, {}, settings)
    return root


def diagnose(folder: Path, kind: str, out: Path, *words: str) -> dict:
    given = ["--vq-ckpt", f"{folder}/{kind}", "--data-path", f"{folder}/images", "--out", str(out), *words]
    return job.run(parse(DiagnoseConfig, [*given, "--device", "cpu"], aliases=FLAGS))


def test_any_tokenizer_is_diagnosed(folder: Path, tmp_path: Path) -> None:
    found = diagnose(folder, "hybrid_1d", tmp_path / "1d", "--every", "3", "--frechet", "fd_efficientnet_lite2")
    assert found["prefixes"]["num_tokens"] == [1, 3, 6, 8, 9, 12, 15, 16]
    assert found == json.loads((tmp_path / "1d/diagnosis.json").read_text())
    assert set(found["gains"]) == {"mse", "fd_efficientnet_lite2"} and len(found["positions"]["entropy"]) == 16
    assert (tmp_path / "1d/positions.md").read_text().count("\n") == 18
    assert Image.open(tmp_path / "1d/positions.png").size[0] > 500
    grid = diagnose(folder, "hybrid_2d", tmp_path / "2d")
    assert grid["prefixes"]["num_tokens"] == [16] and "tail_gain_mse" not in grid["summary"]
    for words, said in ((("--every", "17"), "expected 1 to 16"), (("--frechet", "fid"), "expected fd_efficientnet")):
        with pytest.raises(UserError, match=said):
            diagnose(folder, "hybrid_1d", tmp_path / "x", *words)
