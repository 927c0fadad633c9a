"""The check of GPUs runs on a CPU; steps do not wait for their device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.check_gpu import lines, run
from benchmarks.check_gpu.cases import CASES, trainee_and_batch
from benchmarks.check_gpu.waits import waits_of

CPU, META = torch.device("cpu"), torch.device("meta")
QUICK = ["1", "3", "4", "5", "6", "9", "10", "11", "13a"]


def test_the_quick_lines_pass_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run.run(CPU, QUICK, tmp_path / "check.json"), capsys.readouterr().out
    found = json.loads((tmp_path / "check.json").read_text())["lines"]
    assert [each["result"] for each in found.values()].count("skipped") == 3 and list(found) == QUICK
    assert len(capsys.readouterr().out.splitlines()) == len(QUICK)


@pytest.mark.slow
def test_all_lines_pass_on_a_cpu(tmp_path: Path) -> None:
    assert run.run(CPU, list(run.LINES), tmp_path / "check.json")


@pytest.mark.parametrize("name", CASES)
def test_steps_copy_nothing_that_the_host_waits_for(name: str) -> None:
    trainee, batch = trainee_and_batch(name, META, "run.precision=bf16")
    trainee.step(batch, 8)
    assert waits_of(lambda: trainee.step(batch, 9), META) == []


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
