"""The training loop on a toy: resume, interruption, guards, and averages of keys that come and go."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common import checkpoint, loop, numerics, optim
from common.dist import World
from common.errors import UserError
from common.options import LogConfig, RunConfig

ALONE = World(0, 1, torch.device("cpu"))


class Toy:
    """Fits a line; every step draws noise from (seed, step)."""

    alarms = ()

    def __init__(self, at: dict[int, Any] | None = None):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.at = at or {}

    def step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        happening = self.at.get(step)
        if happening == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if happening == "nan":
            return {"train/loss": torch.tensor(float("nan")), "not_finite": torch.tensor(1.0)}
        noise = torch.randn((), generator=numerics.step_generator(0, step))
        loss = (self.model(batch["x"]) - noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        logged = {"train/loss": loss, "not_finite": torch.tensor(0.0)}
        return logged | ({"train/sometimes": torch.tensor(float(step))} if step % 4 == 0 else {})

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"model": self.model.state_dict()}

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load(self, weights: Any, state: dict[str, Any]) -> None:
        checkpoint.load_into(self.model, weights("model"), "model")
        optim.restore(self.optimizer, state["optimizer"])

    def validate(self) -> dict[str, float]:
        return {"val/bias": self.model.bias.item()}


def batches(start: int, stop: int) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.randn(4, 2, generator=numerics.step_generator(1, step))} for step in range(start, stop)]


def run(out: Path, toy: Toy | None = None, model: int = 1, **options: object) -> tuple[Toy, Path]:
    toy = toy or Toy()
    settings = RunConfig(out=str(out), steps=12, checkpoint_every=5, keep_last=2, milestone_every=0, **options)
    return toy, loop.run(toy, batches, settings, LogConfig(every=3), ALONE, {"model": model})


def lines(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what differs from run to run."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))} for line in found]


def test_a_run_ends_with_a_checkpoint_and_its_figures(tmp_path: Path) -> None:
    _, folder = run(tmp_path)
    assert folder == checkpoint.newest(tmp_path) and folder.name == "0000012"
    assert [line["step"] for line in lines(tmp_path)] == [3, 6, 9, 12]
    assert lines(tmp_path)[1]["train/sometimes"] == 4.0
    assert "finished step 12" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("at", [1, 5, 8, 11])
def test_an_interrupted_run_continues_to_the_same_weights_and_lines(tmp_path: Path, at: int) -> None:
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "cut", Toy({at: "interrupt"}))
    assert caught.value.code == 130 and checkpoint.newest(tmp_path / "cut").name == f"{at + 1:07d}"
    again, _ = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_a_killed_run_continues_to_the_same_weights_and_lines(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", stop_at=None)
    run(tmp_path / "cut", stop_at=10)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/lo')  # what a kill in the middle of a write leaves
    again, _ = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert lines(tmp_path / "cut")[-1]["step"] == 12


def test_asked_again_a_finished_run_does_nothing(tmp_path: Path) -> None:
    _, folder = run(tmp_path)
    before = folder.stat().st_mtime_ns
    _, again = run(tmp_path)
    assert again == folder and folder.stat().st_mtime_ns == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite in step 7"):
        run(tmp_path, Toy({7: "nan"}))
    assert checkpoint.newest(tmp_path).name == "0000005"


def test_another_model_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_at=5)
    with pytest.raises(UserError, match="is of another model"):
        run(tmp_path, model=2)


def test_validation_is_logged(tmp_path: Path) -> None:
    run(tmp_path, validate_every=5)
    assert [line["step"] for line in lines(tmp_path) if "val/bias" in line] == [5, 10, 12]
