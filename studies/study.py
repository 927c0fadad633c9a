"""Studies of many jobs: stages that are run once, several at a time, and figures with their spread over seeds.

A finished stage is a file `<out>/ledger/<stage>.json`. Who works on a stage holds a lock beside it, so any number of
workers, also those of the same command started twice, share one study without repeating each other's work.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.claims import claim
from common.config import read_yaml
from common.errors import UserError
from common.signals import CTRL_C, REQUEUE

__all__ = ["Difference", "Spread", "Stage", "run"]

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 2.0
INTERRUPTED = (CTRL_C, REQUEUE, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Stage:
    """One job: its name (a path such as "retok/seed-0/gpt"), the words after `python -m`, the stages before it."""

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


class Ledger:
    """What is finished: `<out>/ledger/<stage>.json` with the words, the seconds and a hash of the configs named."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "ledger"

    def _path(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.json"

    def finished(self, stage: Stage) -> bool:
        """Raises: UserError when the stage was finished with other options or another config."""
        try:
            found = json.loads(self._path(stage).read_text())
        except (OSError, ValueError):
            return False
        if (found["words"], found["configs"]) != (list(stage.words), _configs_hash(stage.words)):
            raise UserError(
                f"{self._path(stage)} was made with other options or another config than asked for now; choose another "
                "--out, or ask for what was asked before"
            )
        return True

    def spent(self, stage: Stage, seconds: float = 0.0) -> float:
        """Add to the seconds spent on a stage; returns all of them, those before interruptions included."""
        path = self._path(stage).with_suffix(".spent")
        total = seconds + (float(path.read_text()) if path.is_file() else 0.0)
        path.write_text(f"{total:.1f}\n")
        return total

    def finish(self, stage: Stage, seconds: float) -> None:
        entry = {"words": list(stage.words), "configs": _configs_hash(stage.words), "seconds": round(seconds, 1)}
        partial = self._path(stage).with_suffix(".partial")
        partial.write_text(json.dumps(entry, indent=1) + "\n")
        partial.replace(self._path(stage))

    def claim(self, stage: Stage) -> AbstractContextManager[bool]:
        """Whether the stage is ours while the context lasts; False when another worker has it."""
        return claim(self._path(stage).with_suffix(".lock"))


def _configs_hash(words: Sequence[str]) -> str:
    """A hash of the YAML files that follow `--config`, their bases included."""
    files = [words[at + 1] for at, word in enumerate(words) if word == "--config"]
    body = json.dumps([read_yaml(ROOT / file) for file in files], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


Spend = Callable[[Stage, Path], int]


def run(stages: Sequence[Stage], out: str | Path, workers: int = 1, gpus: int = 1, spend: Spend | None = None) -> None:
    """Run what is not finished yet, `workers` stages at a time; a stage starts when all it needs is finished.

    What a stage prints goes to `<out>/logs/<stage>.log`. `spend(stage, log)` runs one and returns its exit status.

    Raises: UserError when a stage fails, KeyboardInterrupt after an interrupt.
    """
    out = Path(out)
    ledger, jobs, stop = Ledger(out), _Jobs(gpus, max(1, (os.cpu_count() or 1) // workers)), threading.Event()
    total = len(stages)

    def work() -> None:
        try:
            while not stop.is_set():
                left = [stage for stage in stages if not ledger.finished(stage)]
                if not left:
                    return
                if not any(attempt(stage, total - len(left) + 1) for stage in left):
                    stop.wait(POLL_SECONDS)
        finally:
            stop.set()

    def attempt(stage: Stage, number: int) -> bool:
        """Run the stage if it is ready and nobody else is at it; whether it was run."""
        if stop.is_set() or not all(ledger.finished(other) for other in stages if other.name in stage.needs):
            return False
        with ledger.claim(stage) as ours:
            if not ours or ledger.finished(stage):
                return False
            log = out / "logs" / f"{stage.name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            print(f"[{number}/{total}] {stage.name}: python -m {' '.join(stage.words)}", flush=True)
            start = time.perf_counter()
            status = (spend or jobs.spend)(stage, log)
            seconds = ledger.spent(stage, time.perf_counter() - start)
            if status in INTERRUPTED:
                raise KeyboardInterrupt
            if status != 0:
                lines = log.read_text().strip().splitlines()
                raise UserError(f"stage {stage.name!r} ended with status {status}: {lines[-1] if lines else log}")
            ledger.finish(stage, seconds)
            return True

    with _terminable(), ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for _ in range(workers)]
        try:
            while not all(future.done() for future in futures):
                time.sleep(0.05)
        finally:
            stop.set()
            if not all(future.done() for future in futures):
                jobs.terminate()
        for future in futures:
            future.result()


class _Jobs:
    """The jobs of this process that are running."""

    def __init__(self, gpus: int, threads: int) -> None:
        self.gpus, self.threads = gpus, threads
        self.running: set[subprocess.Popen] = set()

    def spend(self, stage: Stage, log: Path) -> int:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {"OMP_NUM_THREADS": str(self.threads), **os.environ, "PYTHONPATH": path}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}"]
        command = [sys.executable, *(launcher if self.gpus > 1 else []), "-m", *stage.words]
        with log.open("a") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            self.running.add(process)
            try:
                return process.wait()
            finally:
                self.running.discard(process)

    def terminate(self) -> None:
        """Ask the running jobs to save and leave."""
        for process in list(self.running):
            process.terminate()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is handled like Ctrl-C, so that jobs do not outlive the study."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ----------------------------------------------------------------------------------------------- figures over seeds


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for a single value) and number of a figure's values over seeds."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, digits: int = 2) -> str:
        """ "mean ± deviation"; the mean alone for one value."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Difference:
    """Mean of a figure's paired differences over seeds, and its 95% interval by Student's t; one seed has none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, one: Sequence[float], other: Sequence[float]) -> Difference:
        """`one` minus `other`, seed by seed."""
        from scipy.special import stdtrit  # a third of a second of every --help otherwise

        values = [a - b for a, b in zip(one, other, strict=True)]
        mean, width = statistics.fmean(values), float("inf")
        if len(values) > 1:
            width = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
        return cls(mean, mean - width, mean + width)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below zero; 0 where it holds zero."""
        return (self.low > 0) - (self.high < 0)

    def text(self, digits: int = 2) -> str:
        """ "+mean [low, high]"."""
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
