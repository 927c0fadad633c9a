"""Two ways of doing the same work, timed in one process, and how far the faster one is from what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

__all__ = ["Work", "compare", "matrix_rate", "median_seconds", "memory_rate", "wait"]


@dataclass(frozen=True)
class Work:
    """What has to be done at least: floating point operations, and bytes that have to be read or written."""

    flops: float
    bytes: float = 0.0

    def share(self, seconds: float, device: torch.device, precision: str) -> float:
        """The roofline's time over `seconds`: 1 = as fast as the machine's arithmetic or memory allows."""
        return max(self.flops / matrix_rate(device, precision), self.bytes / memory_rate(device)) / seconds


def compare(
    plain: Callable[[], Any], ours: Callable[[], Any], items: int, device: torch.device, *,
    repeats: int = 5, warm_up: int = 1, work: Work | None = None, precision: str = "bf16",
) -> dict[str, Any]:
    """Run both in turn, so that a slower minute of the machine falls on both; `items` are made by one call."""
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(warm_up + repeats):
        for name, call in (("plain", plain), ("ours", ours)):
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    found: dict[str, Any] = {
        name: {**_spread(values), "items_per_s": items / statistics.median(values)} for name, values in seconds.items()
    }
    found["ratio"] = found["plain"]["median_s"] / found["ours"]["median_s"]
    found["ratio_range"] = [
        round(ratio, 3) for ratio in (
            found["plain"]["min_s"] / found["ours"]["max_s"], found["plain"]["max_s"] / found["ours"]["min_s"]
        )
    ]  # fmt: skip
    if work:
        found["roofline_share"] = work.share(found["ours"]["median_s"], device, precision)
    return found


def median_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 5, warm_up: int = 1) -> float:
    seconds = []
    for _ in range(warm_up + repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:])


def _spread(seconds: list[float]) -> dict[str, Any]:
    return {
        "median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "repeats": len(seconds),
    }  # fmt: skip


@cache
def matrix_rate(device: torch.device, precision: str, size: int | None = None) -> float:
    """FLOP/s of the fastest of ten products of square matrices."""
    size = size or (8192 if device.type == "cuda" else 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: left @ right, device)


@cache
def memory_rate(device: torch.device) -> float:
    """Bytes a second of the fastest of ten sums over one GiB, which are read once."""
    source = torch.ones(2**28, device=device)
    return source.numel() * source.element_size() / _fastest(source.sum, device)


def _fastest(call: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
