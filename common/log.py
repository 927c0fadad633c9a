"""Logs of a run: log.txt for people, metrics.jsonl for programs, and optional trackers."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import dist
from common.config import sentence
from common.dist import World
from common.errors import UserError
from common.options import LogConfig


class Logger:
    """Rank 0 writes everything; other ranks write only warnings."""

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
            _append(self.out / "log.txt", _stamped(text))

    def warn(self, text: str) -> None:
        """Log a warning of this rank. Any rank and thread may call it."""
        text = f"warning: rank {self.world.rank}: {text}"
        tqdm.write(text, file=sys.stderr)
        _append(self.out / "log.txt", _stamped(text))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One JSON line: {"step": ..., "train/loss_recon": ...}."""
        if not self.world.is_main:
            return
        _append(self.out / "metrics.jsonl", json.dumps({"step": step, **values}) + "\n")
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
    """Delete the lines after `step`, so that a resumed run logs every step once."""
    path = Path(out) / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the last line of a killed run may be incomplete
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)


def write_failure(out: str | Path, rank: int, error: BaseException) -> None:
    """Append a rank's exception to log.txt, with its traceback unless the user can mend it.

    A UserError raised before the run folder exists does not create it.
    """
    if isinstance(error, UserError) and not Path(out).is_dir():
        return
    said = sentence(error)
    lines = [said] if said else traceback.format_exception(error)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        _append(Path(out) / "log.txt", _stamped(f"rank {rank} failed: {''.join(lines).rstrip()}"))
    except (OSError, UserError):
        pass  # the disk may be full; the error itself is still raised


def _stamped(text: str) -> str:
    return f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n"


def _append(path: Path, text: str) -> None:
    try:
        with open(path, "a") as file:  # a single write, so that lines of several ranks do not interleave
            file.write(text)
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written ({error.strerror}); free space or mend the folder's permissions, then "
            "run the same command again"
        ) from error


class Averages:
    """Running means of logged values over steps and ranks since the last line; part of a run's state."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, logged: dict[str, Tensor]) -> None:
        """Add the scalars of one step, without synchronising the device. Every rank adds the same keys."""
        for key, value in logged.items():
            self._sums[key] = self._sums.get(key, 0) + value.detach()
            self._counts[key] = self._counts.get(key, 0) + 1

    def mean(self) -> dict[str, float]:
        return {key: value / self._counts[key] for key, value in dist.mean(self._sums).items()}

    def state(self) -> dict[str, Any]:
        """Sums and counts so far, by rank. Every rank calls it."""
        return {"counts": dict(self._counts), "sums": dist.gather_objects({k: v.cpu() for k, v in self._sums.items()})}

    def load(self, state: dict[str, Any], rank: int, device: torch.device) -> None:
        """Restore `state`. With another number of ranks, each gets the mean over the previous ones."""
        sums = state["sums"]
        if len(sums) == dist.size():
            mine = sums[rank]
        else:
            mine = {key: sum(one[key] for one in sums) / len(sums) for key in sums[0]}
        self._sums = {key: value.to(device) for key, value in mine.items()}
        self._counts = dict(state["counts"])


def peak_memory_gb(device: torch.device | None = None) -> float:
    """Peak memory so far, in GB: allocated on a CUDA `device`, else resident memory of this process.

    Linux reports resident memory twice; `ru_maxrss` starts with the parent process's figure, so it is not used there.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS counts bytes
