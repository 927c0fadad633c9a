"""The look of plots and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def png_uri(data: bytes) -> str:
    """The content of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def figure_uri(figure: Figure) -> str:
    """A plot as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    return png_uri(buffer.getvalue())
