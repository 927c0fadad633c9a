"""The check of GPUs runs on a CPU; steps do not wait for their device."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.check_gpu import lines, run
from benchmarks.check_gpu.cases import CASES, trainee_and_batch
from benchmarks.check_gpu.waits import waits_of
from common import config
from tokenizer.config import TrainConfig
from tokenizer.discriminators import DISCRIMINATORS
from tokenizer.losses import LOSSES
from tokenizer.quantizers import QUANTIZERS
from tokenizer.regularizers import REGULARIZERS

ROOT = Path(__file__).parents[2]
CPU, META = torch.device("cpu"), torch.device("meta")
NEEDS_A_GPU = ["5", "6", "10"]
LEFT_OUT = {"lpips", "convnext_small", "dino", "nested_dropout"}
"""As benchmarks/check_gpu/cases.py says."""


def test_the_whole_check_passes_on_a_cpu(tmp_path: Path) -> None:
    """A minute and a half of one core: the longest test. Every line that a CPU can stand in for runs."""
    command = ["bash", "scripts/check_gpu.sh", "--device", "cpu", f"out={tmp_path}/check.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "check.json").read_text())["lines"]
    assert {key: each["result"] for key, each in found.items()} == {
        key: "skipped" if key in NEEDS_A_GPU else "pass" for key in run.LINES
    }
    said = done.stdout.splitlines()
    assert "toy sizes" in said[0] and len(said) == 1 + len(found) + 1
    assert all(f"skipped {found[key]['title']}: {found[key]['why']}" in done.stdout for key in NEEDS_A_GPU)


def test_the_cases_contain_every_part() -> None:
    seen: set[str] = set()
    for job, words in CASES.values():
        if job == "tokenizer":
            settings = config.parse(TrainConfig, words)
            several = [*settings.losses.values(), *settings.regularizers.values()]
            seen |= {each["name"] for each in (settings.model.quantizer, *several)}
            seen |= {settings.adversary.discriminator["name"]} if settings.adversary else set()
    assert seen | LEFT_OUT >= QUANTIZERS.keys() | LOSSES.keys() | DISCRIMINATORS.keys() | REGULARIZERS.keys()


def test_what_is_compiled_has_the_released_width() -> None:
    trainee, _ = trainee_and_batch("S-S", META)
    assert sum(weight.numel() for weight in trainee.trained.parameters()) > 134e6  # 136M less most of the semantic head


def test_a_copy_and_a_read_are_seen() -> None:
    assert waits_of(lambda: torch.ones(3).to(META), META) == ["aten._to_copy.default of (3,)"]
    assert waits_of(lambda: torch.empty(2, device=META).new_tensor([1.0]), META) == ["new_tensor of (1,)"]
    assert waits_of(lambda: torch.empty((), device=META).item(), META)


def test_a_failure_is_a_line_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> dict[str, object]:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(run.LINES, "1", ("machine", broken))
    monkeypatch.setitem(run.LINES, "11", ("metrics", lambda device: {"x": 1.0}))
    assert not run.run(CPU, ["1", "11"], tmp_path / "check.json")
    found = json.loads((tmp_path / "check.json").read_text())["lines"]
    assert found["1"]["why"] == "RuntimeError: no kernel image" and found["11"]["result"] == "pass"
    with pytest.raises(lines.CheckError, match="listed"):
        monkeypatch.setattr(lines.dist, "listed_gpus", lambda: ["H100"])
        lines.machine(CPU)
