"""What a run says: log.txt for people, metrics.jsonl for programs, trackers when asked."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.dist import World
from common.settings import LogConfig


class Logger:
    """Rank 0 writes; the others are silent."""

    def __init__(self, out: str | Path, config: LogConfig, world: World, run_config: dict[str, Any]):
        self.out, self.world = Path(out), world
        self._wandb = self._tensorboard = None
        if not world.is_main:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        if config.wandb:
            import wandb

            if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE")):
                os.environ["WANDB_MODE"] = "offline"
            self._wandb = wandb.init(
                project=config.wandb, name=self.out.name, dir=str(self.out), config=run_config, resume="allow"
            )
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.out / "tensorboard"))

    def say(self, text: str) -> None:
        if self.world.is_main:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            with open(self.out / "log.txt", "a") as file:
                file.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One JSON line: {"step": ..., "train/loss_recon": ...}."""
        if not self.world.is_main:
            return
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)
        if self._tensorboard:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)

    def close(self) -> None:
        if self._wandb:
            self._wandb.finish()
        if self._tensorboard:
            self._tensorboard.close()


def trim_metrics(out: str | Path, step: int) -> None:
    """Drop the lines after `step`, so that a resumed run logs every step once."""
    path = Path(out) / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the last line of a killed run may be cut short
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)
