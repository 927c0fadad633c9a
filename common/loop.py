"""The training loop: resume, step, log, checkpoint, stop.

A trainer builds its objects and passes the loop a `Trainee`. All randomness of a step comes from generators seeded
by (seed, step), so the state of a run is its weights, its optimizers and its step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from common import attention, checkpoint, dist
from common.checkpoint import Saver
from common.dist import World
from common.errors import UserError
from common.guard import NotFinite
from common.log import Averages, Logger, peak_memory_gb, trim_metrics, write_failure
from common.options import LogConfig, RunConfig
from common.prefetch import Feed
from common.provenance import check_resume
from common.signals import Interrupts
from common.trainee import Trainee

T = TypeVar("T")


@contextmanager
def job(config: RunConfig) -> Iterator[World]:
    """Initialise and destroy the process group of a training job; writes an exception of any rank to log.txt."""
    world = dist.init(config.device)
    try:
        yield world
    except Exception as error:
        write_failure(config.out, world.rank, error)
        raise
    dist.close()


def run(
    trainee: Trainee,
    loader: Callable[[int, int], Iterable[dict[str, Tensor]]],
    config: RunConfig,
    log: LogConfig,
    world: World,
    run_config: dict[str, Any],
    meta: dict[str, Any] | None = None,
    name: Callable[[int], str] = str,
    warning: str | None = None,
) -> Path:
    """Train until `config.steps`; returns the last checkpoint's folder.

    `loader(start, stop)` yields this rank's batches for steps [start, stop); `name(index)` describes an item of them.
    `run_config` becomes `config.json`; `meta` goes into the manifest of every checkpoint; `warning` is logged first.

    Raises: UserError when a step is not finite and the policy is to stop, and when data or disk fail (data: after a
    save); SystemExit(130 or 75) after a signal (after a save).
    """
    job = _Run(trainee, config, log, world, run_config, meta, name)
    if warning:
        job.logger.say(warning)
    return job.train(loader)


class _Run:
    """The state of the loop between steps."""

    def __init__(
        self,
        trainee: Trainee,
        config: RunConfig,
        log: LogConfig,
        world: World,
        run_config: dict[str, Any],
        meta: dict[str, Any] | None,
        name: Callable[[int], str],
    ) -> None:
        self.trainee, self.config, self.world, self.name = trainee, config, world, name
        self.run_config, self.log_every = run_config, log.every
        self.meta = meta or {}
        self.out = Path(config.out)
        self.last = min(config.steps, config.stop_at or config.steps)
        self.averages, self.guard = Averages(), NotFinite(config, world.rank, name)
        self.lock = self.together(lambda: checkpoint.lock(self.out) if world.is_main else None)
        self.logger = Logger(self.out, log, world, run_config)
        self.saver = Saver(config, run_config, meta, self.logger.warn)
        self.since, self.counted, self.save_s = time.perf_counter(), 0, 0.0

    def train(self, loader: Callable[[int, int], Iterable[dict[str, Tensor]]]) -> Path:
        self.logger.say(self.describe())
        try:
            start = self.resume()
            if start >= self.last:
                self.logger.say(f"already trained to step {start}; nothing to do")
                return checkpoint.folder(self.out, start)
            self.steps(start, loader)
            saved = checkpoint.folder(self.out, self.last)
            self.logger.say(f"finished step {self.last}: {saved}")
            return saved
        finally:
            self.logger.close()
            if self.lock:
                self.lock.close()

    def describe(self) -> str:
        """The device and everything else that decides how fast a step is."""
        device, config = self.world.device, self.config
        name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
        return (
            f"torch {torch.__version__}, device {name}, {self.world.size} process(es), parallel {config.parallel}, "
            f"precision {config.precision}, attention {attention.kernel_name(config.precision, device)} (of varying "
            f"lengths: {attention.kernel_name(config.precision, device, varying=True)})"
        )

    def steps(self, start: int, loader: Callable[[int, int], Iterable[dict[str, Tensor]]]) -> None:
        """Steps [start, last), with everything that happens between them."""
        stop = Interrupts(launched=self.world.size > 1)
        bar = tqdm(
            total=self.last, initial=start, desc=self.out.name, unit="step", disable=not self.world.is_main,
            dynamic_ncols=True, mininterval=1.0,
        )  # fmt: skip
        try:
            with Feed(loader(start, self.last), self.world.device, self.name, self.logger.warn) as feed:
                feed.advance()
                self.raise_together(feed.problem)
                self.restart_clock(feed)
                for step in range(start, self.last):
                    signalled, broken = self.step(step, feed, stop)
                    bar.update()
                    self.report(step + 1, feed, bar)
                    if self.is_due(step + 1) or signalled or broken:
                        self.save(step + 1)
                    if signalled or broken:
                        self.leave(step + 1, signalled, feed.problem)
            self.finish_saving()
        finally:
            bar.close()
            stop.restore()

    def step(self, step: int, feed: Feed, stop: Interrupts) -> tuple[int, bool]:
        """Take 0-based `step`; returns the signal received by any rank (0 = none) and whether any lacks data."""
        index = feed.index
        logged = self.trainee.step(feed.batch, step)
        not_finite = logged.pop("not_finite").reshape(1).float()
        if step + 1 < self.last:
            feed.advance()
        own = torch.tensor([stop.received or 0, feed.problem is not None, self.saver.failed], dtype=torch.float32)
        # The only synchronisation of a step with the device, and of the ranks on how it ended.
        agreed = dist.largest(torch.cat([not_finite, own.to(self.world.device, non_blocking=True)])).tolist()
        if agreed[3]:
            self.finish_saving()
        if agreed[0]:
            self.logger.say(self.guard.skip(step, logged, index))
        else:
            self.guard.fine()
            self.averages.add(logged)
        self.counted += 1
        return int(agreed[1]), bool(agreed[2])

    def report(self, done: int, feed: Feed, bar: tqdm) -> None:
        """Log, warn and validate if that is due after `done` steps."""
        if done % self.log_every == 0 or done == self.last:
            figures = self.averages.mean()
            bad = [key for key, value in figures.items() if not math.isfinite(value)]
            if bad:
                raise UserError(f"{', '.join(bad)} not finite by step {done}; lower optim.lr or set run.precision=none")
            figures |= {
                "time/step_s": (time.perf_counter() - self.since) / self.counted,
                "time/data_s": feed.waited_s / self.counted,
                "time/save_s": self.save_s,  # time that training waited for checkpoints since the last line
                "memory/peak_gb": peak_memory_gb(self.world.device),
            }
            self.logger.metrics(done, figures)
            for warning in (alarm.look(done, figures) for alarm in self.trainee.alarms):
                if warning:
                    self.logger.say(warning)
            bar.set_postfix(loss=f"{figures.get('train/loss', math.nan):.4f}", refresh=False)
            self.averages.clear()
            self.restart_clock(feed)
        if self.config.validate_every and (done % self.config.validate_every == 0 or done == self.last):
            self.logger.metrics(done, self.trainee.validate())
            self.restart_clock(feed)

    def restart_clock(self, feed: Feed) -> None:
        self.since, self.counted, self.save_s, feed.waited_s = time.perf_counter(), 0, 0.0, 0.0

    def is_due(self, done: int) -> bool:
        return done % self.config.checkpoint_every == 0 or done == self.last

    def save(self, done: int) -> None:
        """Write a checkpoint. Every rank calls it, because state may be sharded."""
        began = time.perf_counter()
        weights = self.trainee.weights()
        state = {
            **self.trainee.state(), "step": done, "averages": self.averages.state(), "guard": self.guard.state(),
        }  # fmt: skip
        takes_part = self.world.is_main or any(checkpoint.is_sharded(tensors) for tensors in weights.values())
        self.together(lambda: self.saver.save(done, weights, state) if takes_part else None)
        self.save_s += time.perf_counter() - began

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is on disk. Raises: UserError on every rank when it could not be written."""
        self.together(self.saver.finish)

    def leave(self, done: int, signalled: int, problem: Exception | None) -> None:
        self.finish_saving()
        saved = checkpoint.folder(self.out, done)
        if not signalled:
            self.logger.say(f"the data failed after step {done}; saved {saved}")
            self.raise_together(problem)
        self.logger.say(f"interrupted at step {done}; saved {saved}; run the same command again to continue")
        raise SystemExit(Interrupts.exit_code(signalled))

    def resume(self) -> int:
        """Load the newest undamaged checkpoint, if there is one, and log it; returns the step to continue from."""
        found = dist.gather_objects(self.together(self.find_checkpoint))[0]
        if found is None:
            if self.world.is_main:
                trim_metrics(self.out, 0)
            self.logger.say(f"training from scratch; results go to {self.out}")
            return 0
        before = checkpoint.read_config(found, verify=False)
        if before.get("model") != self.run_config.get("model"):
            raise UserError(
                f"{str(found)!r} is of another model (its config.json differs in 'model'); "
                "choose another --out or the config it was started with"
            )
        if warning := check_resume(found, self.meta):
            self.logger.say(f"warning: {warning}")
        weights, state = checkpoint.restore(found, self.trainee.weights(), self.trainee.state())
        self.trainee.load(weights, state)
        self.averages.load(state["averages"], self.world.rank, self.world.device)
        self.guard.load(state["guard"])
        if self.world.is_main:
            trim_metrics(self.out, state["step"])
            self.saver.prune()
        self.logger.say(f"resuming from {found} at step {state['step']}")
        changed = [key for key, value in _flat(self.run_config).items() if _flat(before).get(key) != value]
        if changed:
            self.logger.say(f"since then the config has changed in {', '.join(changed)}")
        return state["step"]

    def find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from. The main process reads every file of it once and compares the hashes."""
        if not self.world.is_main:
            return None
        found, aside = checkpoint.recover(self.out)
        if aside:
            self.logger.say(f"warning: damaged checkpoints were set aside: {', '.join(map(str, aside))}")
        if found is None and self.config.resume_from:
            found = checkpoint.resolve_folder(self.config.resume_from)
            damaged = checkpoint.damaged(found) if (found / checkpoint.MANIFEST).is_file() else []
            if damaged:
                raise UserError(f"{str(found)!r} is damaged ({', '.join(damaged)}); resume from an earlier checkpoint")
        return found

    def together(self, action: Callable[[], T]) -> T:
        """Run `action`; raise its error on every rank when it fails on one of them."""
        problem = None
        try:
            result = action()
        except (UserError, OSError) as error:
            problem = error
        self.raise_together(problem)
        return result

    def raise_together(self, problem: Exception | None) -> None:
        """Raise on every rank the problem of one of them."""
        if dist.any_rank(problem is not None, self.world.device):
            raise problem or UserError("another process of this job failed; see log.txt for its rank and reason")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
