"""Times several ways of doing the same work in one process, and relates the fastest to the machine's limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

__all__ = ["Work", "compare", "matrix_rate", "memory_rate"]

DTYPES = {"none": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes that have to be read or written, for one call."""

    flops: float
    bytes: float = 0.0

    def share(self, seconds: float, device: torch.device, precision: str) -> float:
        """Time that the roofline allows, over `seconds`: 1 = limited by arithmetic or memory alone."""
        return max(self.flops / matrix_rate(device, precision), self.bytes / memory_rate(device)) / seconds


def compare(
    ways: Mapping[str, Callable[[], Any]], items: int, device: torch.device, *,
    repeats: int = 5, warm_up: int = 1, work: Work | None = None, precision: str = "bf16",
) -> dict[str, Any]:
    """Seconds and items per second of every way. `items` are made by one call.

    The ways run in turn, so that a slow minute of the machine affects all of them. With the ways "plain" and "ours" the
    ratio of their medians is added, and with `work` the share of the roofline that "ours" reaches in `precision`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + repeats):
        for name, call in ways.items():
            taken = _seconds(call, device)
            if number >= warm_up:
                seconds[name].append(taken)
    found: dict[str, Any] = {}
    for name, values in seconds.items():
        median = statistics.median(values)
        found[name] = {
            "median_s": median, "min_s": min(values), "max_s": max(values), "repeats": repeats,
            "items_per_s": items / median,
        }  # fmt: skip
    if {"plain", "ours"} <= found.keys():
        plain, ours = found["plain"], found["ours"]
        found["ratio"] = plain["median_s"] / ours["median_s"]
        found["ratio_range"] = [plain["min_s"] / ours["max_s"], plain["max_s"] / ours["min_s"]]
    if work:
        found["roofline_share"] = work.share(found["ours"]["median_s"], device, precision)
    return found


@cache
def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest of ten products of square matrices."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right, device) for _ in range(10))


@cache
def memory_rate(device: torch.device) -> float:
    """Bytes per second of the fastest of ten sums over one GiB, read once."""
    source = torch.ones(2**28, device=device)
    return source.nbytes / min(_seconds(source.sum, device) for _ in range(10))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
