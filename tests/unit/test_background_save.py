"""A checkpoint that is written in the background holds what was there when it was asked for."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from common import checkpoint
from common.checkpoint import Saver
from common.options import RunConfig


def test_training_on_does_not_change_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, save = Event(), checkpoint.save

    def late(*arguments: Any) -> Any:
        assert changed.wait(30)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", late)
    saver = Saver(RunConfig(out=str(tmp_path), steps=2, background_save=True), {}, None, print)
    weight, moment = torch.ones(4), torch.ones(4)
    for step in (1, 2):
        changed.clear()
        saver.save(step, {"model": {"w": weight}}, {"optimizer": {"m": [moment]}, "step": step})
        weight.add_(1)
        moment.add_(1)
        changed.set()
        saver.finish()
        weights, state = checkpoint.restore(
            checkpoint.newest(tmp_path), {"model": {"w": weight}}, {"optimizer": {"m": [moment]}, "step": 0}
        )
        assert weights("model")["w"].tolist() == [float(step)] * 4
        assert state["optimizer"]["m"][0].tolist() == [float(step)] * 4
