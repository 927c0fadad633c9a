"""Who writes a run's checkpoints: the training itself, or a thread beside it."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from common import checkpoint, dist
from common.options import RunConfig


class Saver:
    """Saves and prunes. With `background_save` the training waits for a copy to host memory only.

    One checkpoint is written at a time: a save that comes before the last one is on disk waits for it.
    """

    def __init__(self, config: RunConfig, run_config: Mapping[str, Any], meta: Mapping[str, Any] | None) -> None:
        self.config, self.run_config, self.meta = config, run_config, meta
        self._host: dict[str, Tensor] = {}  # kept, because page-locked memory is slow to get
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Raises: UserError when this checkpoint, or in the background the one before, cannot be written."""
        self.finish()
        if not self.config.background_save:
            self._write(step, weights, state)
            return
        copied = self._copy({"weights": dict(weights), "state": dict(state)}, "")
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._thread = Thread(target=self._try, args=(step, copied["weights"], copied["state"]), name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the background has an error to raise."""
        return self._error is not None

    def finish(self) -> None:
        """Wait for the background. Raises: UserError when it could not write."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _try(self, *checkpoint_parts: Any) -> None:
        try:
            self._write(*checkpoint_parts)
        except Exception as error:  # raised in the training's thread
            self._error = error

    def _write(self, step: int, weights: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        checkpoint.save(self.config.out, step, weights, state, self.run_config, self.meta)
        if dist.rank() == 0:
            checkpoint.prune(self.config.out, self.config.keep_last, self.config.milestone_every)

    def _copy(self, value: Any, path: str) -> Any:
        """Containers as they are, tensors as copies in host memory that is used again by the next save."""
        if isinstance(value, Mapping):
            return {key: self._copy(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, f"{path}/{number}") for number, item in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        local = value.to_local() if checkpoint.in_parts(value) else value
        held = self._host.get(path)
        if held is None or held.shape != local.shape or held.dtype != local.dtype:
            held = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self._host[path] = held
        if local is not value:
            from common import sharded

            return sharded.on_host(value, held)
        return held.copy_(value.detach(), non_blocking=True)
