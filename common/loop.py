"""The one training loop: resume, step, log, checkpoint, stop.

A trainer builds its objects and gives the loop a `Trainee`. Everything random in a step is drawn from
generators seeded by (seed, step), so the state of a run is its weights, its optimizers and its step.
"""

from __future__ import annotations

import math
import resource
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from common import checkpoint, dist
from common.dist import World
from common.errors import UserError
from common.log import Logger, trim_metrics
from common.settings import LogConfig, RunConfig


class Trainee(Protocol):
    """What the loop drives."""

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Forward, backward, update for 0-based `step`; scalars to log (device tensors, not synchronised).

        A key may be missing from some steps; it is averaged over those that have it.
        """

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by file name, e.g. {"model": ..., "ema": ...}."""

    def state(self) -> dict[str, Any]:
        """Optimizers and counters: tensors and plain containers."""

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Inverse of the two above; `weights(name)` reads one file."""

    def validate(self) -> dict[str, float]:
        """Scalars on held-out data."""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context that model code runs under.

    Raises: UserError for an unknown precision.
    """
    if precision not in ("none", "bf16"):
        raise UserError(f"run.precision got {precision!r}; expected none or bf16")
    kind = device.type if device.type in ("cpu", "cuda") else "cpu"  # shapes are checked on the meta device
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16")


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that is the same on every rank and after every resume."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4096 + stream)


class _Stop:
    """Notes Ctrl-C and SIGTERM; the loop saves and leaves. A second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._first = 0.0
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, _frame: object) -> None:
        # A launcher forwards the terminal's Ctrl-C to its workers, so one key press arrives twice within moments.
        if self.signal is not None and time.monotonic() - self._first > 2.0:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._first = number, time.monotonic()

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run(
    trainee: Trainee,
    loader: Callable[[int, int], Iterable[dict[str, Tensor]]],
    config: RunConfig,
    log: LogConfig,
    world: World,
    run_config: dict[str, Any],
    meta: dict[str, Any] | None = None,
) -> Path:
    """Train until `config.steps`; returns the last checkpoint's folder.

    `loader(start, stop)` yields this rank's batches for steps [start, stop). `run_config` is what
    `config.json` will say, `meta` goes into the manifest of every checkpoint.

    Raises: UserError when a loss stops being finite, SystemExit(128 + signal) after an interrupt was saved.
    """
    out = Path(config.out)
    last = min(config.steps, config.stop_at or config.steps)
    start, found = _resume(trainee, out, world, run_config)
    if found and start >= last:
        if world.is_main:
            print(f"{out}: already trained to step {start}; nothing to do")
        return found
    logger = Logger(out, log, world, run_config)
    logger.say(f"resuming from {found} at step {start}" if found else f"training from scratch; results go to {out}")
    stop = _Stop()

    def save(step: int) -> Path:
        if world.is_main:
            checkpoint.save(out, step, trainee.weights(), {**trainee.state(), "step": step}, run_config, meta)
            checkpoint.prune(out, config.keep_last, config.milestone_every)
        dist.barrier()
        return out / "checkpoints" / f"{step:07d}"

    bar = tqdm(
        total=last,
        initial=start,
        desc=out.name,
        unit="step",
        disable=not world.is_main,
        dynamic_ncols=True,
        mininterval=1.0,
    )
    totals: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    counted, since, saved = 0, time.perf_counter(), found
    try:
        for step, batch in zip(range(start, last), loader(start, last), strict=True):
            batch = {key: value.to(world.device, non_blocking=True) for key, value in batch.items()}
            for key, value in trainee.step(batch, step).items():
                totals[key] = totals.get(key, 0) + value.detach()
                seen[key] = seen.get(key, 0) + 1
            counted, done = counted + 1, step + 1
            bar.update()
            if done % log.every == 0 or done == last:
                averages = {key: value / seen[key] for key, value in dist.mean(totals).items()}
                if not all(math.isfinite(value) for value in averages.values()):
                    bad = [key for key, value in averages.items() if not math.isfinite(value)]
                    raise UserError(
                        f"{', '.join(bad)} not finite in steps {done - counted}..{done}; lower optim.lr or set "
                        f"run.precision=none, then run the same command again (last checkpoint: {saved or 'none'})"
                    )
                seconds = (time.perf_counter() - since) / counted
                averages |= {"time/step_s": seconds, "memory/peak_gb": peak_memory_gb()}
                logger.metrics(done, averages)
                bar.set_postfix(loss=f"{averages.get('train/loss', math.nan):.4f}", refresh=False)
                totals, seen, counted, since = {}, {}, 0, time.perf_counter()
            if config.validate_every and (done % config.validate_every == 0 or done == last):
                logger.metrics(done, trainee.validate())
                since = time.perf_counter()
            interrupted = dist.any_rank(stop.signal is not None, world.device)
            if done % config.checkpoint_every == 0 or done == last or interrupted:
                saved = save(done)
            if interrupted:
                bar.close()
                logger.say(f"interrupted at step {done}; saved {saved}; run the same command again to continue")
                raise SystemExit(128 + (stop.signal or signal.SIGTERM))
    finally:
        bar.close()
        stop.restore()
        logger.close()
    logger.say(f"finished step {last}: {saved}")
    return saved


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _resume(trainee: Trainee, out: Path, world: World, run_config: dict[str, Any]) -> tuple[int, Path | None]:
    """Load the newest complete checkpoint, if any; say so when the run's config has changed since."""
    found = checkpoint.newest(out)
    if found is None:
        if world.is_main:
            trim_metrics(out, 0)
        return 0, None
    before = checkpoint.read_config(found)
    if before.get("model") != run_config.get("model"):
        raise UserError(
            f"{str(out)!r} holds a run of another model ({found.name}/config.json differs in 'model'); "
            "choose another --out or the config it was started with"
        )
    state = checkpoint.read_state(found)
    trainee.load(lambda name: checkpoint.read_weights(found, name), state)
    if world.is_main:
        trim_metrics(out, state["step"])
    return state["step"], found
