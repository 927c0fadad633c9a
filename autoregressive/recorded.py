"""Drawing whole batches of codes as one recording; see common/recording.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.layers import KVCache
from autoregressive.models.gpt import GPT
from common.recording import Recording

__all__ = ["RecordedDraw"]


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
