"""The report's figures, as PNG data URIs: one look for all of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from evaluations.figures import COLOURS, MUTED, STYLE

__all__ = ["curves", "file_uri", "positions", "quality", "seconds", "uri"]

LogLines = Sequence[Mapping[str, Any]]


def uri(pixels: np.ndarray) -> str:
    """uint8 (H,W,3) -> PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def file_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def quality(metrics: Mapping[str, Any]) -> str:
    """PSNR with both baselines, perceptual distance and feature distance against the number of tokens."""
    lengths = sorted(metrics["reconstruction"], key=int)
    counts = [int(k) for k in lengths]
    titles = {
        "psnr": "PSNR, dB (higher is better)", "perceptual": "Perceptual distance (lower)",
        "fd": "Feature distance (lower)",
    }
    panels = [key for key in titles if key in metrics["reconstruction"][lengths[0]]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.2), layout="constrained")
        for axes, key, colour in zip(_row(figure, len(panels)), panels, COLOURS, strict=False):
            values = [metrics["reconstruction"][k][key] for k in lengths]
            axes.plot(counts, values, color=colour, marker="o", markersize=5)
            axes.set(title=titles[key], xlabel="tokens per image", xscale="log")
            axes.set_xticks(counts, [str(k) for k in counts])
            axes.minorticks_off()
            if key == "psnr":
                _baselines(axes, metrics["baselines"], counts)
        return _png(figure)


def _baselines(axes: Axes, baselines: Mapping[str, float], counts: Sequence[int]) -> None:
    # The lower line is labelled below itself, so that two close lines do not write over each other.
    lines = [("bilinear_8x8_psnr", "8×8 thumbnail", ":"), ("kmeans_patch_vq_psnr", "k-means patches", "--")]
    for place, (key, name, style) in enumerate(sorted(lines, key=lambda line: baselines[line[0]])):
        axes.axhline(baselines[key], color=MUTED, linestyle=style, linewidth=1.2)
        axes.annotate(
            f"{name} {baselines[key]:.1f}", (counts[0], baselines[key]), xytext=(0, 3 if place else -11),
            textcoords="offset points", color=MUTED, fontsize=8.5,
        )


def positions(codes: Mapping[str, Any]) -> str:
    """Distinct codes and perplexity at every position of the sequence."""
    usage, perplexity = codes["usage_per_position"], codes["perplexity_per_position"]
    where = np.arange(1, len(usage) + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.bar(where, np.array(usage) * 100, color=COLOURS[0], width=0.85)
        left.set(title="Share of the codebook seen at each position, %", xlabel="position in the sequence")
        right.bar(where, perplexity, color=COLOURS[2], width=0.85)
        right.set(title="Perplexity at each position (effective number of codes)", xlabel="position in the sequence")
        for axes in (left, right):
            axes.grid(axis="x", visible=False)
        return _png(figure)


def curves(tokenizer: LogLines, generator: LogLines) -> str:
    """Losses against steps: the tokenizer's losses, its held-out PSNR if logged, the generator's loss."""
    keys = {key for line in tokenizer for key in line}
    parts = sorted(key for key in keys if key.startswith("train/loss"))
    held_out = sorted((key for key in keys if key.startswith("val/psnr_")), key=lambda key: int(key.split("_")[-1]))
    with mpl.rc_context(STYLE):
        panels = [("Tokenizer: losses", tokenizer, parts, True)]
        if held_out:
            panels.append(("Tokenizer: held-out PSNR, dB", tokenizer, held_out, False))
        panels.append(("Generator: loss, nats per token", generator, ["train/loss", "val/loss"], False))
        figure = Figure(figsize=(10.4, 4.0), layout="constrained")
        for axes, (title, lines, shown, log) in zip(_row(figure, len(panels)), panels, strict=True):
            for number, key in enumerate(shown):
                points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
                if log:  # a loss that has not begun yet is logged as 0
                    points = [] if any(value < 0 for _, value in points) else [point for point in points if point[1]]
                if points:
                    label = key.replace("train/loss_", "").replace("train/loss", "total" if log else "training")
                    label = label.replace("val/loss", "held out").replace("val/psnr_", "tokens: ").replace("_", " ")
                    axes.plot(*zip(*points, strict=True), color=COLOURS[number % len(COLOURS)], label=label,
                              linewidth=1.4, linestyle="-" if number < len(COLOURS) else "--")
            axes.set(title=title, xlabel="step", yscale="log" if log else "linear")
            axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        return _png(figure)


def seconds(stages: Mapping[str, float]) -> str:
    """A bar for every stage."""
    names = list(stages)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 0.6 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(names, [stages[name] for name in names], color=COLOURS[0], height=0.62)
        axes.bar_label(bars, [f"{stages[name]:.0f} s" for name in names], padding=4, fontsize=9, color=MUTED)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.set_xlabel("seconds")
        return _png(figure)


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
