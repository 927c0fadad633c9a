"""Batches of a run: loader processes, prefetching, transfer to the device, and a watchdog."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError

STALL_S = 60.0


def ignore_signals(_worker: int) -> None:
    """For loader processes: a signal to the whole process group must not kill them before the training has saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def iterate(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """The batches of `loader`, whose processes run `ignore_signals`.

    Raises: UserError as the dataset does (torch wraps it in the text of its traceback), and when a process died.
    """
    before = set(multiprocessing.active_children())
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if in_main_thread and handler is not None:  # torch's handler raises anywhere; `next` notices dead processes, too
        signal.signal(signal.SIGCHLD, handler)
    workers = set(multiprocessing.active_children()) - before
    problem: Exception | None = None
    try:
        yield from batches
    except UserError as error:
        problem = UserError(str(error).rpartition("UserError: ")[2].strip())
    except (RuntimeError, OSError, EOFError):  # OSError: the connection to the process is gone
        # The connection of a killed process may be gone a moment before the process is.
        if not multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=2):
            raise
        codes = ", ".join(str(worker.exitcode) for worker in workers if worker.exitcode is not None)
        problem = UserError(
            f"a loader process died (exit code {codes}; -9 often means out of memory); lower data.workers or free "
            "memory, then run the same command again"
        )
    finally:
        del batches  # asks the processes to end
        for worker in workers:  # those that do not, because they ignore SIGTERM
            worker.kill()
    if problem:
        raise problem


class Feed:
    """Holds the next batch, or the error of fetching it; either is known before the step is taken.

    `batch` is on the device; `index` int64 (B,) lists its items, on the host. When a batch takes longer than
    `stall_s`, another thread calls `warn`.
    """

    def __init__(
        self,
        batches: Iterable[dict[str, Tensor]],
        device: torch.device,
        name: Callable[[int], str],
        warn: Callable[[str], None],
        stall_s: float = STALL_S,
    ) -> None:
        self._batches, self._device, self._name, self._warn = iter(batches), device, name, warn
        self._stall_s = stall_s
        self.batch: dict[str, Tensor] = {}
        self.index: Tensor | None = None
        self.problem: Exception | None = None
        self.replaced = 0
        self.waited_s = 0.0
        self._since: float | None = None
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="loader watch", daemon=True)

    def __enter__(self) -> Feed:
        self._watcher.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closed.set()
        # Without the join this thread could hold the last reference to the batch, and freeing tensors in a thread
        # aborts an interpreter that is shutting down.
        self._watcher.join()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def advance(self) -> None:
        """Fetch the next batch. An error is kept in `problem`, because all ranks must stop together."""
        self._since = time.monotonic()
        try:
            host = next(self._batches)
        except Exception as error:  # every error of a loader ends the run in the same way
            self.problem = error
            return
        finally:
            self.waited_s += time.monotonic() - self._since
            self._since = None
        self.index = host.get("index")
        self._report_replaced(host)
        self.batch = {key: value.to(self._device, non_blocking=True) for key, value in host.items()}

    def _report_replaced(self, host: dict[str, Tensor]) -> None:
        """Log the images that were replaced by others (data.bad_images=skip)."""
        asked = host.pop("asked", None)
        if asked is None:
            return
        for wanted, got in zip(asked.tolist(), host["index"].tolist(), strict=True):
            if wanted != got:
                self.replaced += 1
                self._warn(f"{self._name(wanted)} cannot be read, {self._name(got)} took its place ({self.replaced})")

    def _watch(self) -> None:
        told: float | None = None
        while not self._closed.wait(self._stall_s / 4):
            since = self._since
            if since is not None and since != told and time.monotonic() - since > self._stall_s:
                told = since
                self._warn(f"no batch for {self._stall_s:.0f} s; is the storage slow or gone, or data.workers too low?")
