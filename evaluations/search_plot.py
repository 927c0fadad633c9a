"""The picture of a guidance search: the objective over the scale, a line per schedule, window and number of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["plot"]


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
