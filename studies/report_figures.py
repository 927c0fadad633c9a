"""The figures of the report, as PNG data URIs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluations.figures import COLOURS, MUTED, STYLE, figure_uri, png_uri
from evaluations.harness import grid

__all__ = ["changes", "curves", "file_uri", "quality", "seconds", "strip", "uri"]

LogLines = Sequence[Mapping[str, Any]]
COLUMNS = 32
"""Pictures per row of a strip."""
BASELINES = {"bilinear_8x8_psnr": ("thumbnail", ":"), "kmeans_patch_vq_psnr": ("k-means patches", "--")}


def uri(pixels: np.ndarray) -> str:
    """uint8 (H,W,3) -> PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return png_uri(buffer.getvalue())


def file_uri(path: Path) -> str:
    return png_uri(path.read_bytes())


def changes(prefixes: np.ndarray) -> np.ndarray:
    """The change of each image from the one before, the first from white, around grey; uint8 (N,H,W,3)."""
    signed = prefixes.astype(np.int16)
    before = np.concatenate((np.full_like(signed[:1], 255), signed[:-1]))
    return np.clip(128 + (signed - before) * 0.5, 0, 255).astype(np.uint8)


def strip(prefixes: np.ndarray) -> str:
    """Images decoded from 1, 2, 3, ... tokens, uint8 (N,H,W,3) -> rows of them, each above the change per token."""
    changed = changes(prefixes)
    rows: list[list[np.ndarray]] = []
    for start in range(0, len(prefixes), COLUMNS):
        rows += [list(part[start : start + COLUMNS]) for part in (prefixes, changed)]
    return uri(grid(rows))


def quality(metrics: Mapping[str, Any]) -> str:
    """PSNR, with both baselines, and SSIM against the number of tokens."""
    lengths = sorted(metrics["reconstruction"], key=int)
    counts = [int(k) for k in lengths]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.4), layout="constrained")
        axes = figure.subplots(1, 2)
        for plot, key, title, colour in zip(axes, ("psnr", "ssim"), ("PSNR, dB", "SSIM"), COLOURS, strict=False):
            values = [metrics["reconstruction"][k][key] for k in lengths]
            plot.plot(counts, values, color=colour, marker="o", markersize=5)
            plot.set(title=title, xlabel="tokens per image", xscale="log")
            plot.set_xticks(counts, lengths)
            plot.minorticks_off()
        for key, (name, style) in BASELINES.items():
            value = metrics["baselines"][key]
            axes[0].axhline(value, color=MUTED, linestyle=style, linewidth=1.2)
            axes[0].annotate(f"{name} {value:.1f}", (counts[0], value), xytext=(0, 3), textcoords="offset points",
                             color=MUTED, fontsize=8.5)  # fmt: skip
        return figure_uri(figure)


def curves(tokenizer: LogLines, generator: LogLines) -> str:
    """Reconstruction loss, held-out PSNR, and the generator's training and held-out loss against steps."""
    lengths = {key for line in tokenizer for key in line if key.startswith("val/psnr_")}
    panels = [
        ("Tokenizer: reconstruction loss", tokenizer, {"train/loss_recon": "training"}),
        ("Tokenizer: held-out PSNR, dB", tokenizer, {
            key: f"{key.rpartition('_')[2]} tokens" for key in sorted(lengths, key=lambda key: int(key.split("_")[-1]))
        }),
        ("Generator: nats per token", generator, {"train/loss": "training", "val/loss": "held out"}),
    ]  # fmt: skip
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.6), layout="constrained")
        for plot, (title, lines, shown) in zip(figure.subplots(1, 3), panels, strict=True):
            for (key, label), colour in zip(shown.items(), COLOURS, strict=False):
                points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
                if points:
                    plot.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.4)
            plot.set(title=title, xlabel="step")
            plot.legend()
        return figure_uri(figure)


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
        return figure_uri(figure)
