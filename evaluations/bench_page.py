"""The page of the bench: who is best at what, plots, a sortable table, example images; plain HTML without a network."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from evaluations.bench_table import BIASED, EQUAL_BITS, column, shown
from evaluations.figures import COLOURS, STYLE, figure_uri

__all__ = ["render"]

TEMPLATE = Path(__file__).with_name("bench.html.j2")
QUESTIONS = {
    "closest pixels": ("psnr",), "most alike to the eye": ("lpips_vgg", "perceptual_efficientnet_lite0"),
    "closest distribution": ("fd_dinov2_vitl14", "fd_inception", "fd_efficientnet_lite2"),
    "codes easiest to predict": ("nats",), "best samples": ("samples_",), "most robust to wrong codes": ("pfd_",),
    "cheapest to decode": ("flops_decode",), "fastest to decode": ("images_per_s_decode",),
}  # fmt: skip
"""What a reader asks, and the figures that answer it: the first that was measured. `x_` stands for any `x_...`."""

Row = Mapping[str, Any]
Axis = Callable[[Row], float | None]


def render(table: Mapping[str, Any], out: Path) -> str:
    """The page; files are linked relative to `out`."""
    rows = sorted(table["rows"], key=lambda row: (row["level"], row["tokenizer"]))
    columns = {name: column(name) for name in table["columns"]}
    sections: dict[str, int] = {}
    for each in columns.values():
        sections[each.section] = sections.get(each.section, 0) + 1
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        about=table["about"], rows=rows, columns=columns, sections=sections, shown=shown, winners=winners(table),
        levels=levels(rows), plots=plots(table), examples=examples(rows, out), equal_bits=f"{EQUAL_BITS:g}",
        biased=BIASED,
    )  # fmt: skip


def levels(rows: Sequence[Row]) -> list[str]:
    """The headings of the levels of equal bits."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["level"], []).append(row["figures"]["bits"]["value"])
    ends = [(min(bits), max(bits)) for _, bits in sorted(found.items())]
    return [f"{low:,.0f} bits" if low == high else f"{low:,.0f} to {high:,.0f} bits" for low, high in ends]


def winners(table: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, str, list[str]]]]]:
    """(question, column title, for each level: best tokenizer, its value, those not told apart from it)."""
    found = []
    for asked, wanted in QUESTIONS.items():
        fits = (n for w in wanted for n in table["columns"] if n == w or (w[-1] == "_" and n.startswith(w)))
        name = next(fits, None)
        cells = []
        for level in sorted({row["level"] for row in table["rows"]}) if name else ():
            here = [row for row in table["rows"] if row["level"] == level and name in row["figures"]]
            best = next((row for row in here if row["figures"][name]["verdict"] == "best"), None)
            equal = [row["tokenizer"] for row in here if row["figures"][name]["verdict"] == "equal"]
            cells.append((best["tokenizer"], shown(name, best["figures"][name]), equal) if best else ("", "", []))
        if name and any(cell[0] for cell in cells):
            found.append((asked, column(name).title, cells))
    return found


def examples(rows: Sequence[Row], out: Path) -> list[tuple[int, list[str], list[list[str]]]]:
    """(level, tokenizers, rows of image files: the original, then every tokenizer) for each level with images."""
    found = []
    for level in sorted({row["level"] for row in rows}):
        folders = {
            f"{row['tokenizer']} @{row['num_tokens']}": (out / row["records"]["kept"]).with_suffix("")
            for row in rows if row["level"] == level and "kept" in row["records"]
        }  # fmt: skip
        if not folders:
            continue
        first = next(iter(folders.values()))
        numbers = sorted(path.stem.removesuffix("_original") for path in first.glob("*_original.png"))
        pictures = [
            [first / f"{number}_original.png", *(folder / f"{number}.png" for folder in folders.values())]
            for number in numbers
        ]
        linked = [[Path(os.path.relpath(path, out)).as_posix() for path in line] for line in pictures]
        found.append((level, list(folders), linked))
    return found


# ------------------------------------------------------------------------------------------------------- plots


def plots(table: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(question, caption, PNG data URI) of every plot whose figures were measured."""
    rows, look = table["rows"], _looks(table["rows"])
    main = table["about"]["frechet"]
    kept, title = _axis(main), column(main).title
    given = [
        ("What do more bits buy?", "Bars: 95% intervals. Best: low.", _axis("bits"), kept, "bits/image", title),
        ("Do good images come with codes that are easy to predict?", "Best: left and low.", _axis("nats"), kept,
         "nats an image, held out", title),
        ("What does quality cost?", "Best: left and low.", _axis("flops_decode", 1e9), kept, "decoder GFLOPs", title),
        ("Do predictable codes give good samples?", "Best: left and low.", _axis("nats"),
         _axis(f"samples_{main}"), "nats an image, held out", column(f"samples_{main}").title),
    ]  # fmt: skip
    made = [(asked, told, _scatter(rows, look, x, y, names)) for asked, told, x, y, *names in given]
    told = "10 log10(4 / mean squared error) of images decoded from the first tokens."
    made.insert(1, ("What does each token add?", told, _gains(rows, look)))
    return [(asked, told, figure_uri(figure)) for asked, told, figure in made if figure]


def _axis(name: str, unit: float = 1.0) -> Axis:
    def read(row: Row) -> float | None:
        figure = row["figures"].get(name)
        return figure and figure["value"] and figure["value"] / unit

    read.name = name
    return read


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    named = list(dict.fromkeys(row["tokenizer"] for row in rows))
    marks = "osD^vPX*"
    return {
        name: {"color": COLOURS[at % len(COLOURS)], "marker": marks[at % len(marks)], "label": name,
               "linestyle": ("-", "--", ":")[at // len(COLOURS) % 3]} for at, name in enumerate(named)
    }  # fmt: skip


def _finish(figure: Figure, title: Sequence[str]) -> Figure:
    axes = figure.axes[0]
    axes.set(xlabel=title[0], ylabel=title[1], xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _scatter(
    rows: Sequence[Row], look: Mapping[str, dict[str, Any]], x: Axis, y: Axis, title: Sequence[str]
) -> Figure | None:
    """One line per tokenizer through its token counts, with the intervals of y; None without two points."""
    if sum(bool(x(row) and y(row)) for row in rows) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 4.8), layout="constrained")
        axes = figure.subplots()
        for name, style in look.items():
            own = [row for row in rows if row["tokenizer"] == name and x(row) and y(row)]
            if not own:
                continue
            values = [y(row) for row in own]
            ends = [row["figures"][y.name]["interval"] or (v, v) for row, v in zip(own, values, strict=True)]
            bars = [[max(v - low, 0) for v, (low, _) in zip(values, ends, strict=True)],
                    [max(high - v, 0) for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
            axes.errorbar([x(row) for row in own], values, bars, capsize=2, markersize=6, elinewidth=0.9, **style)
        return _finish(figure, title)


def _gains(rows: Sequence[Row], look: Mapping[str, dict[str, Any]]) -> Figure | None:
    curves = {row["tokenizer"]: row["prefixes"] for row in rows if "prefixes" in row}
    curves = {name: curve for name, curve in curves.items() if len(curve["num_tokens"]) > 1}
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 4.8), layout="constrained")
        axes = figure.subplots()
        for name, curve in curves.items():
            quality = [10 * math.log10(4 / error) for error in curve["mse"]]
            axes.plot(curve["num_tokens"], quality, **{**look[name], "markersize": 3})
        return _finish(figure, ("tokens decoded", "dB"))
