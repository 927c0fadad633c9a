"""The search for a guidance scale: a hill climb on a grid of 0.25 that never asks for the same point twice.

Source: GigaTok's sample_c2i_cfg_search (algorithm and start values).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

STEP = 0.25
LOWEST = 1.0

SEARCHABLE = ("constant", "step", "rectangular")

STARTS = {
    "step": {"GPT-B": 2.5, "GPT-L": 1.75, "": 1.25},
    "constant": {"GPT-B": 2.0, "": 1.75},
    "rectangular": {"GPT-B": 3.0, "GPT-L": 2.5, "": 1.75},
}
"""schedule -> generator size -> scale to begin with; "" stands for every other size."""


def coarse_count(num_images: int) -> int:
    """Images per point while searching: a fifth, but not below 1,000, where distances are too noisy to rank scales."""
    return min(num_images, max(num_images // 5, 1000))


def start_scale(schedule: str, size: str) -> float:
    return STARTS[schedule].get(size, STARTS[schedule][""])


def climb(
    evaluate: Callable[[float], float], start: float, tried: dict[float, float], up_first: bool = True
) -> tuple[float, float]:
    """Minimise `evaluate(scale)` over the grid around `start`.

    From the best point so far, its neighbours are tried until both are known and neither is better.

    Args:
        tried: scale -> value of points known already; new ones are added as they are found.

    Returns: the best scale and its value.
    """
    if not tried:
        tried[start] = evaluate(start)
    while True:
        best = min(tried, key=lambda scale: (tried[scale], scale))
        neighbours = [round(best + STEP, 4), round(best - STEP, 4)]
        if not up_first:
            neighbours.reverse()
        untried = [scale for scale in neighbours if scale >= LOWEST and scale not in tried]
        if not untried:
            return best, tried[best]
        tried[untried[0]] = evaluate(untried[0])


def windows() -> list[tuple[float, float]]:
    """The (start, end) pairs that the rectangular schedule is searched over: 137 of them, all with start < end."""
    starts = [round(0.10 + 0.05 * i, 2) for i in range(15)]
    ends = [round(0.50 + 0.05 * i, 2) for i in range(11)]
    return [(start, end) for start in starts for end in ends if start < end]


def plot(rows: Iterable[Mapping[str, Any]], objective: str, path: str | Path) -> None:
    """Write a PNG of the rows of `search.csv`; rows without the objective are left out."""
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row.get(objective) not in (None, ""):
            label = f"{row['cfg_schedule']} {row['annotation']}, {row['num_images']} images".replace(" ,", ",")
            lines[label].append((float(row["cfg_scale"]), float(row[objective])))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="guidance scale", ylabel=objective)
    for label, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.grid(alpha=0.3)
    if len(lines) <= 12:  # more, as for 137 windows, would hide the picture
        axes.legend()
    partial = Path(path).with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)
