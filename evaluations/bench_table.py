"""The table of the bench: rows of figures with intervals, and what can be told apart at equal bits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.figures import markdown
from evaluations.metrics.bootstrap import interval

__all__ = ["Column", "collect", "column", "shown", "text"]

EQUAL_BITS = 1.25
"""Rows belong to one level of bits while each has at most this many times the bits of the one before."""


@dataclass(frozen=True)
class Column:
    """Heading, section, explanation, and whether high (1) or low (-1) values are better, or neither (0)."""

    title: str
    section: str
    better: int
    about: str
    digits: int = 4


COLUMNS = {
    "bits": Column("bits", "cost", 0, "bits of an image: tokens x log2(codebook size)"),
    "parameters": Column("parameters", "cost", -1, "of encoder, quantizer and decoder"),
    "flops_encode": Column("encode FLOPs", "cost", -1, "one image; counted by torch, a multiply-add is two"),
    "flops_decode": Column("decode FLOPs", "cost", -1, "one image; counted by torch, a multiply-add is two"),
    "images_per_s_encode": Column("encode images/s", "cost", 1, "in batches, on the device named in the record", 3),
    "images_per_s_decode": Column("decode images/s", "cost", 1, "in batches, on the device named in the record", 3),
    "psnr": Column("PSNR", "kept", 1, "dB, mean over 8-bit images"),
    "ssim": Column("SSIM", "kept", 1, "7x7 windows, images in [0,1]"),
    "lpips_vgg": Column("LPIPS (VGG)", "kept", -1, "Zhang et al. 2018"),
    "perceptual_": Column("perceptual", "kept", -1, "LPIPS's recipe on the network named, without learned weights"),
    "fd_inception": Column("rFID", "kept", -1, "Frechet distance, Inception of the ADM evaluator"),
    "fd_dinov2_vitl14": Column("FD-DINOv2", "kept", -1, "Frechet distance, DINOv2 ViT-L/14 (Stein et al. 2023)"),
    "fd_": Column("FD", "kept", -1, "Frechet distance in the features of the network named"),
    "kid_": Column("KID", "kept", -1, "Binkowski et al. 2018, in the features of the network named"),
    "mmd_clip_vitl14_336": Column("CMMD", "kept", -1, "CLIP ViT-L/14-336 (Jayasumana et al. 2024)"),
    "mmd_": Column("MMD", "kept", -1, "CMMD's distance in the features of the network named"),
    "precision_": Column("precision", "kept", 1, "Kynkaanniemi et al. 2019, k = 3, float64 distances"),
    "recall_": Column("recall", "kept", 1, "Kynkaanniemi et al. 2019, k = 3, float64 distances"),
    "codebook_usage": Column("codebook use", "codes", 1, "share of the codebook that occurs"),
    "codebook_perplexity": Column("perplexity", "codes", 1, "number of equally likely codes of the same entropy"),
    "mean_entropy": Column("entropy", "codes", 1, "mean over positions, 1 = all codes equally likely"),
    "tail_entropy": Column("tail entropy", "codes", 1, "mean over the second half of the positions"),
    "tail_gain_mse": Column("tail gain", "codes", 1, "share of the squared error that the second half removes"),
    "pfd_": Column("pFD", "robust", -1, "FD after redrawing codes among near ones, mean over the grid of settings"),
    "swap_fd_": Column("swap FD", "robust", -1, "FD when each code is another image's with probability 1/2"),
    "nats": Column("nats/image", "learned", -1, "of held-out codes under the small GPT"),
    "samples_fd_": Column("sample FD", "learned", -1, "FD of the small GPT's samples"),
}  # fmt: skip
"""Figure, or the start of its name -> its column; the first that matches counts."""

BIASED = "Resamples hold fewer different images, which raises Frechet distances: an interval can lie above its value."


def column(name: str) -> Column | None:
    """The column of a figure; None for figures that are not shown. The network of a stand-in is in its title."""
    found = next((key for key in COLUMNS if name == key or (key.endswith("_") and name.startswith(key))), None)
    if found is None:
        return None
    base = COLUMNS[found]
    if not found.endswith("_"):
        return base
    return Column(f"{base.title} ({name[len(found):].replace('_', ' ')})", base.section, base.better, base.about)


def collect(
    told: Mapping[str, Sequence[tuple[dict[str, Any], Path, dict[str, Any]]]],
    tokenizers: Mapping[str, Mapping[str, Any]], out: Path, about: Mapping[str, Any],
) -> dict[str, Any]:
    """`{about, columns, rows}` from the (question, file, record) of every tokenizer's measurements.

    tokenizers: name -> `path` and `bits_per_code`. out: the folder that links to records are relative to.
    A row is a tokenizer at a token count. `figures` maps a column to its value, its interval or None, and `verdict`:
    "best" of the rows at equal bits, "equal" when the interval of the difference to the best holds zero, "worse", or
    None where there is no interval or nothing to compare with.
    """
    rows: list[dict[str, Any]] = []
    for name, units in told.items():
        whole = next(((path, found) for q, path, found in units if q["group"] == "codes"), None)
        for k in sorted({question["num_tokens"] for question, _, _ in units if question["group"] != "codes"}):
            parts = [(path, found) for q, path, found in units if q["num_tokens"] == k and q["group"] != "codes"]
            row: dict[str, Any] = {"tokenizer": name, "path": tokenizers[name]["path"], "num_tokens": k}
            row |= {"figures": {"bits": {"value": k * tokenizers[name]["bits_per_code"]}}, "records": {}}
            for path, found in [*parts, *([whole] if whole else [])]:
                group = found["question"]["group"]
                row["records"][group] = os.path.relpath(path, out)
                row["figures"] |= {n: dict(f) for n, f in found["figures"].items() if column(n)}
                row |= {n: f for n, f in found["figures"].items() if n in ("prefixes", "entropy")}
            rows.append(row)
    order = list(COLUMNS)
    present = sorted(
        {name for row in rows for name in row["figures"]},
        key=lambda n: (next(i for i, key in enumerate(order) if n == key or n.startswith(key)), n),
    )
    _level(rows)
    for name in present:
        for level in {row["level"] for row in rows}:
            _judge(name, [row["figures"][name] for row in rows if row["level"] == level and name in row["figures"]])
    return {"about": dict(about), "columns": present, "rows": rows}


def _level(rows: list[dict[str, Any]]) -> None:
    """Number the levels of equal bits from the lowest, from 0."""
    level, before = -1, 0.0
    for row in sorted(rows, key=lambda row: row["figures"]["bits"]["value"]):
        bits = row["figures"]["bits"]["value"]
        level += bits > before * EQUAL_BITS
        row["level"], before = level, bits


def _judge(name: str, figures: list[dict[str, Any]]) -> None:
    """Add interval and verdict to one column's figures at equal bits, and drop the replicates."""
    better = column(name).better
    replicates = [np.array(figure.pop("replicates", None) or []) for figure in figures]
    for figure, own in zip(figures, replicates, strict=True):
        figure["interval"] = list(interval(own)) if len(own) else None
        figure["verdict"] = None
    known = [at for at, figure in enumerate(figures) if figure["value"] is not None]
    if not better or len(known) < 2:
        return
    best = max(known, key=lambda at: better * figures[at]["value"])
    figures[best]["verdict"] = "best"
    for at in known:
        if at != best and figures[at]["value"] == figures[best]["value"]:
            figures[at]["verdict"] = "equal"
        elif at != best and len(replicates[at]) == len(replicates[best]) > 0:
            low, high = interval(replicates[at] - replicates[best])
            figures[at]["difference"] = [low, high]
            figures[at]["verdict"] = "equal" if low <= 0 <= high else "worse"


def shown(name: str, figure: Mapping[str, Any] | None) -> str:
    """A figure's value in few digits."""
    if figure is None or figure["value"] is None:
        return ""
    value = figure["value"]
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if name.startswith(("flops", "parameters")) and value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.{column(name).digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def text(table: Mapping[str, Any]) -> str:
    """The Markdown table, with the interval behind each value and what the marks mean."""
    about = table["about"]
    titles = {name: column(name).title for name in table["columns"]}
    rows = []
    for row in sorted(table["rows"], key=lambda row: (row["level"], row["tokenizer"])):
        cells = {"tokenizer": row["tokenizer"], "tokens": row["num_tokens"]}
        for name, title in titles.items():
            if figure := row["figures"].get(name):
                mark = {"best": "**", "equal": "≈ "}.get(figure["verdict"], "")
                spread = " [{:.4g}, {:.4g}]".format(*figure["interval"]) if figure["interval"] else ""
                cells[title] = f"{mark}{shown(name, figure)}{mark if mark == '**' else ''}{spread}"
        rows.append(cells)
    notes = [f"{titles[name]}: {column(name).about}." for name in table["columns"]]
    notes += [BIASED, *(f"Left out: {name}: {why}." for name, why in about["left_out"].items()), *about["flags"]]
    return "\n".join([
        "# Tokenizers compared", "",
        f"{about['images']} images of `{about['data_path']}`. Brackets: 95% percentile intervals, {about['resamples']} "
        f"bootstrap resamples of the images, seed {about['seed']}. **Bold**: best at equal bits (levels at most "
        f"{EQUAL_BITS:g} times apart). ≈: not told apart from the best, because the interval of their difference holds "
        f"zero. The small GPT was trained for {about['gpt_steps']} steps. Precision of the tokenizers: "
        f"{about['precision']}.", "",
        markdown(["tokenizer", "tokens", *dict.fromkeys(titles.values())], rows), *(f"- {note}" for note in notes), "",
    ])  # fmt: skip
