"""Drawing whole batches of codes as one recording; see autoregressive/cuda_graph.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.layers import KVCache
from autoregressive.models.gpt import GPT

Made = TypeVar("Made")


class Recording:
    """function(*inputs), its kernels recorded as one CUDA graph: launching them one by one would take far longer.

    The function must return one tensor, must not wait for the GPU, and may let only the shapes of its inputs decide
    what it does. Every other tensor that it reads is read where it lay when it was recorded.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """inputs: on the GPU; later calls must bring the same shapes."""
        self._function = function  # keeps what the graph reads where it is
        self._inputs = [each.clone() for each in inputs]
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is made on first use, compiled kernels say, must not be made in a graph
            function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """A tensor of its own, which the next call leaves as it is; nothing is waited for."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output.clone()


class SideQueue:
    """Work on a GPU beside what is queued after it was asked for. On CPUs it is done when its result is wanted."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def after_now(self, function: Callable[[Tensor], Made], value: Tensor) -> Callable[[], Made]:
        """A call that gives function(value), where `value` is ready once all that is queued by now is done."""
        if self._stream is None:
            return lambda: function(value)
        ready = torch.cuda.current_stream(value.device).record_event()

        def result() -> Made:
            self._stream.wait_event(ready)
            with torch.cuda.stream(self._stream):
                value.record_stream(self._stream)
                made = function(value)
            self._stream.synchronize()
            return made

        return result


class RecordedDraw:
    """`generate`, recorded for the last settings it was called with; new settings or a larger batch record it anew.

    A smaller batch, as at the end of a job, is filled up: its rows would otherwise cost a recording of their own.
    """

    def __init__(self, model: GPT, record: Callable[..., Callable[..., Tensor]] = Recording) -> None:
        self._model, self._record = model, record
        self._settings: Any = None
        self._rows = 0
        self._draw: Callable[..., Tensor] | None = None

    def __call__(
        self, labels: Tensor, image_ids: Tensor, cache: KVCache, num_tokens: int | None, guidance: Guidance,
        sampling: Sampling, seed: int,
    ) -> Tensor:
        """int64 (B, num_tokens), as from `generate`; `cache` is read when something is recorded."""
        settings = (num_tokens, dataclasses.astuple(guidance), dataclasses.astuple(sampling), seed)
        if settings != self._settings or len(labels) > self._rows:

            def draw(labels: Tensor, image_ids: Tensor) -> Tensor:
                return generate(
                    self._model, labels, num_tokens, guidance=guidance, sampling=sampling, seed=seed,
                    image_ids=image_ids, cache=cache,
                )

            self._draw = None  # its memory goes before more is asked for
            self._draw = self._record(draw, labels, image_ids)
            self._settings, self._rows = settings, len(labels)
        return self._draw(*(_filled(each, self._rows) for each in (labels, image_ids)))[: len(labels)]


def _filled(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])
