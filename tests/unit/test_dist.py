"""The choice of the device: a machine with GPUs that torch cannot use is not trained on silently."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest
import torch

from common import dist
from common.errors import UserError
from tests.unit.test_loop import run

LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two GPUs that nvidia-smi lists, and a torch that cannot use them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=LISTED))
    monkeypatch.setattr(dist, "driver_version", lambda: "470.57.02")
    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_gpus_that_torch_cannot_use_are_an_error_with_the_cure(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as caught:
        dist.init("auto")
    said = str(caught.value)
    assert "lists 2 GPUs (NVIDIA H100 80GB HBM3, driver 470.57.02)" in said and torch.__version__ in said
    assert "--device cpu" in said
    assert dist.init("cpu").device.type == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_are_hidden_on_purpose_are_not_missed(machine: pytest.MonkeyPatch, hidden: str) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert dist.init("auto").device.type == "cpu"


def test_a_machine_without_gpus_uses_the_cpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="No devices were found\n"))
    machine.setattr(dist.Path, "glob", lambda *_: [])
    assert dist.init("auto").device.type == "cpu"


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UserError, match="device got 'gpu'; expected auto, cpu or cuda"):
        dist.init("gpu")


def test_the_log_names_device_processes_precision_and_attention(tmp_path) -> None:
    run(tmp_path, stop_at=1)
    said = (tmp_path / "log.txt").read_text().splitlines()[0]
    for part in ("device cpu", "1 process(es)", "precision bf16", "attention torch's cpu kernel", torch.__version__):
        assert part in said
