"""The batches of a run: fetched one ahead, moved to the device, and watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

import torch
from torch import Tensor

STALL_S = 60.0


class Feed:
    """Holds the next batch, or what went wrong while fetching it: both are known before the step is taken.

    `batch` is on the device; `index` int64 (B,) says which items are in it, on the host. While a batch is waited for
    longer than `stall_s`, `warn` is told so, from another thread.
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
        # Left to end by itself, the thread could be the last to hold the batch, and the interpreter, if it is ending,
        # aborts where a thread frees tensors.
        self._watcher.join()

    def advance(self) -> None:
        """Fetch the next batch. What fails is kept in `problem`: the ranks have to agree on leaving first."""
        self._since = time.monotonic()
        try:
            host = next(self._batches)
        except Exception as error:  # whatever a loader raises ends the run at the same place
            self.problem = error
            return
        finally:
            self.waited_s += time.monotonic() - self._since
            self._since = None
        self.index = host.get("index")
        self._report_replaced(host)
        self.batch = {key: value.to(self._device, non_blocking=True) for key, value in host.items()}

    def _report_replaced(self, host: dict[str, Tensor]) -> None:
        """Name the images that others took the place of (data.bad_images=skip)."""
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
