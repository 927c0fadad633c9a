"""The look of plots and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ["#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#7b8794"]

STYLE = {
    "font.size": 10, "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": GRID, "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlepad": 10, "axes.axisbelow": True, "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 9,
}


def markdown(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table; what a row lacks stays empty."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "-|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"
