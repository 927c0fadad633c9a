"""What the study of tokenizer variants found: figures over seeds, paired differences, verdicts, table and plots."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluations import record
from evaluations.figures import COLOURS, STYLE, markdown
from studies.study import Difference, Spread
from studies.variants import FINE_TUNED, EvidenceConfig, lengths

__all__ = ["compare"]

Figures = dict[str, dict[str, list[float]]]
"""Variant -> figure, such as "psnr@16" or "sample fd2@64" -> its value for every seed."""


class Claim(NamedTuple):
    """A published claim: `variant` is above (or, of a distance, below) `other` in these figures."""

    words: str
    variant: str
    other: str
    figures: tuple[str, ...]


LOWER_IS_BETTER = ("perceptual", "fd", "sample fd", "nats", "near copies")
TAIL = {
    "tail entropy": ("tail_entropy", "normalised entropy of the codes in the second half of the sequence"),
    "tail usage": ("tail_usage", "share of the codebook that occurs at a position of the second half, mean"),
    "tail gain": ("tail_gain_mse", "share of the squared error at half of the tokens that the other half removes"),
}
"""Name here -> name in a diagnosis, and its meaning."""
PSNR = ("psnr@short", "psnr@full")
SAMPLES = ("sample fd2@short", "sample fd2@full", "sample fd0@full", "class accuracy@full")
PREFIXES, LENGTHS, ALL = ("psnr@shortest", "psnr@short"), ("psnr@shortest", *PSNR), (*PSNR, *SAMPLES)
CLAIMS = (
    Claim("Nested dropout makes prefixes decode (ReTok)", "nested_dropout", "fixed", PREFIXES),
    Claim("Tail token drop makes prefixes decode (One-D-Piece)", "one_d_piece", "titok", PREFIXES),
    Claim("Flexible length costs quality at full length (ReTok)", "fixed", "nested_dropout", ("psnr@full",)),
    Claim("Padding lets the tail learn (ReTok)", "redundant", "nested_dropout", ("psnr@full", "tail gain")),
    Claim("Semantic regularisation eases generation (GigaTok)", "hierarchical", "nested_dropout", ("nats", *SAMPLES)),
    Claim("Both are better than padding alone (ReTok)", "retok", "redundant", ALL),
    Claim("Both are better than regularisation alone (ReTok)", "retok", "hierarchical", ALL),
    Claim("Decoder fine-tuning helps at every length (ReTok)", "retok_finetune", "retok", (*LENGTHS, *SAMPLES)),
    Claim("Cross-length training helps at every length (NesTok)", "cross_length", "nested_dropout", LENGTHS),
    Claim("Self-alignment adds to cross-length training (NesTok)", "self_alignment", "cross_length", ALL),
    Claim("Padding adds to self-alignment", "padded_alignment", "self_alignment", ALL),
    Claim("Everything is better than ReTok", "all", "retok", ALL),
    Claim("Everything is better than padding and self-alignment", "all", "padded_alignment", ALL),
)
BEST = (*PSNR, "sample fd2@short", "sample fd2@full", "sample fd0@short", "sample fd0@full")
"""Figures for which the best variants are named."""
PLACES = {"shortest": 0, "short": 1, "full": -1}
"""Name of a length -> its place among the token counts."""
DIGITS = {"psnr": 2, "fd": 0, "sample fd2": 0, "sample fd0": 0}


def compare(options: EvidenceConfig) -> dict[str, Any]:
    """Read all stages' results; write `table.md`, `evidence.json` and the plots into `options.out`."""
    figures, curves = gather(options)
    out = Path(options.out)
    ordered = {variant: of for variant, of in figures.items() if lengths(options, variant) == options.num_tokens}
    said, best = verdicts(options, figures), [best_of(ordered, _named(options, name)) for name in BEST]
    body = {
        "question": dataclasses.asdict(options),
        "environment": {**record.environment(), "processor": _processor()},
        "seconds": _seconds(options), "figures": figures, "entropy_per_position": curves, "claims": said,
        "best": best,
    }  # fmt: skip
    record.write_json(out / "evidence.json", body)
    (out / "table.md").write_text(text(options, figures, body))
    _plot_lengths(options, figures, ("psnr", "perceptual", "fd"), out / "quality.png")
    _plot_lengths(options, figures, ("sample fd2", "sample fd0", "class accuracy"), out / "generation.png")
    _plot_tail(options, figures, out / "tail.png")
    _plot_positions(options, curves, out / "positions.png")
    print((out / "table.md").read_text())
    return body


def gather(options: EvidenceConfig) -> tuple[Figures, dict[str, list[float]]]:
    """Every figure of every variant and seed, and the entropy of the codes at every position, mean over seeds."""
    figures: Figures = {}
    curves: dict[str, list[float]] = {}
    for variant in options.variants:
        of: dict[str, list[float]] = {}
        entropies = []
        for seed in options.seeds:
            folder, source = options.folder(variant, seed), options.folder(FINE_TUNED.get(variant, variant), seed)
            rebuilt, samples = (_read(folder / name / "results.json") for name in ("reconstruction", "samples"))
            diagnosis = _read(folder / "diagnosis/diagnosis.json")
            found = {"nats": _read(source / "val_loss.json")["loss"]}
            found["near copies"] = samples["near_copies"]
            found |= {name: diagnosis["summary"].get(key) for name, (key, _) in TAIL.items()}
            for k in lengths(options, variant):
                at = rebuilt["tokens"][str(k)]
                end = "" if k == options.num_tokens[-1] else f"_{k}"
                found |= {
                    f"psnr@{k}": at["psnr"], f"perceptual@{k}": at[options.perceptual], f"fd@{k}": at[options.frechet],
                    f"class accuracy@{k}": samples[f"class_accuracy{end}"],
                    **{f"sample fd{name[-1]}@{k}": fd[f"samples{end}"] for name, fd in samples["fd"].items()},
                }  # fmt: skip
            for name, value in found.items():
                if value is not None:
                    of.setdefault(name, []).append(value)
            entropies.append(diagnosis["positions"]["entropy"])
        figures[variant] = of
        curves[variant] = [sum(values) / len(values) for values in zip(*entropies, strict=True)]
    return figures, curves


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _seconds(options: EvidenceConfig) -> dict[str, float]:
    """Of every variant's tokenizer, averaged over seeds."""
    ledger = Path(options.out) / "ledger"
    entries = {v: [_read(ledger / v / f"seed-{s}/tokenizer.json") for s in options.seeds] for v in options.variants}
    return {variant: Spread.of(each["seconds"] for each in of).mean for variant, of in entries.items()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical processors" if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------- verdicts


def verdicts(options: EvidenceConfig, figures: Figures) -> list[dict[str, Any]]:
    """For every claim whose variants were measured: each figure's paired difference, and whether it was seen."""
    found = []
    for words, variant, other, names in CLAIMS:
        wanted = [_named(options, name) for name in names]
        shared = [name for name in wanted if name in figures.get(variant, {}) and name in figures.get(other, {})]
        for name in shared:
            difference = Difference.of(figures[variant][name], figures[other][name])
            verdict = {1: "seen", -1: "not seen", 0: "not decided here"}[difference.sign * _direction(name)]
            found.append({
                "claim": words, "pair": f"{variant} - {other}", "figure": name,
                "difference": difference.text(_digits(name)), "verdict": verdict,
            })  # fmt: skip
    return found


def _named(options: EvidenceConfig, name: str) -> str:
    """ "psnr@short" -> "psnr@16"."""
    figure, at, place = name.partition("@")
    return f"{figure}@{options.num_tokens[PLACES[place]]}" if at else figure


def best_of(figures: Figures, name: str) -> dict[str, Any]:
    """The variant with the best mean, and the others whose paired interval to it holds zero."""
    measured = {variant: of[name] for variant, of in figures.items() if name in of}
    best = max(measured, key=lambda variant: _direction(name) * Spread.of(measured[variant]).mean)
    rest = {v: Difference.of(values, measured[best]) for v, values in measured.items() if v != best}
    return {
        "figure": name, "best": f"{best}: {Spread.of(measured[best]).text(_digits(name))}",
        "not told apart": ", ".join(f"{v} {d.text(_digits(name))}" for v, d in rest.items() if d.sign == 0),
    }  # fmt: skip


def _direction(name: str) -> int:
    return -1 if name.partition("@")[0].removesuffix("2").removesuffix("0") in LOWER_IS_BETTER else 1


def _digits(name: str) -> int:
    return DIGITS.get(name.partition("@")[0], 3)


# ------------------------------------------------------------------------------------------------------- table


def text(options: EvidenceConfig, figures: Figures, body: dict[str, Any]) -> str:
    """The Markdown page."""
    environment = body["environment"]
    rows = []
    for variant, of in figures.items():
        shown = {name: Spread.of(values).text(_digits(name)) for name, values in of.items()}
        difference = {}
        if variant != options.baseline:
            for name, values in of.items():
                found = Difference.of(values, figures[options.baseline][name])
                difference[name] = found.text(_digits(name)) + ("" if found.sign else " ·")
        rows.append((
            {"variant": variant, "s": f"{body['seconds'][variant]:.0f}", **shown}, {"variant": variant, **difference},
        ))  # fmt: skip
    tables = {
        "Reconstructions of held-out images": ("psnr", "perceptual", "fd"),
        "Samples of a generator, trained on each tokenizer's full-length codes": (
            "sample fd2", "sample fd0", "class accuracy",
        ),
    }  # fmt: skip
    lines = [
        "# Tokenizer variants", "",
        f"Mean ± sample standard deviation over seeds {', '.join(map(str, options.seeds))}. `@k`: the first k tokens "
        "are decoded. "
        f"perceptual is {options.perceptual}, fd is {options.frechet}; sample fd2 and fd0 are distances of samples to "
        "held-out images in the features of EfficientNet-Lite2 and -Lite0; class accuracy is that of a linear probe; "
        "near copies is the share of samples nearer to a training image than 99% of held-out images are, all decoded "
        "from codes; nats is the generator's loss per code on held-out images; s: seconds of tokenizer training. All "
        "trained for equal steps.",
        f"Commit {environment['git_commit']}, torch {environment['torch']}, {environment['processor']}.", "",
    ]  # fmt: skip
    for title, names in tables.items():
        columns = [f"{name}@{k}" for name in names for k in options.num_tokens]
        extra = ["s"] if "psnr" in names else ["nats", "near copies"]
        lines += [f"## {title}", "", markdown(["variant", *columns, *extra], [row for row, _ in rows])]
        lines += [f"Paired differences to {options.baseline}, 95% intervals; `·`: the interval holds zero.", ""]
        differences = [row for _, row in rows if row["variant"] != options.baseline]
        lines += [markdown(["variant", *columns, *(name for name in extra if name != "s")], differences)]
    return "\n".join([
        *lines, "## The tail of the sequence", "", markdown(["variant", *TAIL], [row for row, _ in rows]),
        *(f"- {name}: {meaning}" for name, (_, meaning) in TAIL.items()), "",
        "## Published claims", "",
        "A claim is seen where the paired 95% interval lies on its side of zero, not seen where it lies on the other.",
        "Intervals are not corrected for their number.", "",
        markdown(["claim", "pair", "figure", "difference", "verdict"], body["claims"]),
        "## Best variants", "", "Of those whose prefixes are measured.", "",
        markdown(["figure", "best", "not told apart"], body["best"]),
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------------------- plots


def _plot_lengths(options: EvidenceConfig, figures: Figures, names: Sequence[str], path: Path) -> None:
    """One row a variant, one colour a number of tokens: means over seeds, bars of one standard deviation."""
    colours = mpl.colormaps["viridis_r"].resampled(len(options.num_tokens) + 1)
    variants = options.variants[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(names), 1.4 + 0.32 * len(variants)), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
            for number, k in enumerate(options.num_tokens):
                rows = [row for row, variant in enumerate(variants) if k in lengths(options, variant)]
                spreads = [Spread.of(figures[variants[row]][f"{name}@{k}"]) for row in rows]
                axes.errorbar(
                    [s.mean for s in spreads], rows, xerr=[s.deviation or 0.0 for s in spreads], fmt="o", capsize=2,
                    markersize=5, color=colours(number + 1), label=f"{k} tokens",
                )  # fmt: skip
            better = "higher" if _direction(name) > 0 else "lower"
            axes.set(title=name, xlabel=f"{better} is better")
            axes.set_yticks(range(len(variants)), variants)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, dpi=130, facecolor="white")


def _plot_tail(options: EvidenceConfig, figures: Figures, path: Path) -> None:
    with mpl.rc_context(STYLE):
        names = options.variants[::-1]
        figure = Figure(figsize=(4.2 * len(TAIL), 0.9 + 0.32 * len(names)), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(TAIL), sharey=True), TAIL, strict=True):
            _bars(axes, {v: Spread.of(figures[v][name]) for v in names if name in figures[v]})
            axes.set(title=name)
        figure.savefig(path, dpi=130, facecolor="white")


def _bars(axes: Axes, spreads: dict[str, Spread]) -> None:
    deviations = [s.deviation or 0.0 for s in spreads.values()]
    axes.barh(list(spreads), [s.mean for s in spreads.values()], xerr=deviations, color=COLOURS[0], height=0.6)
    axes.grid(axis="y", visible=False)


def _plot_positions(options: EvidenceConfig, curves: dict[str, list[float]], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 1.0 + 0.28 * len(options.variants)), layout="constrained")
        axes = figure.subplots()
        longest = max(map(len, curves.values()))
        table = [curves[v] + [float("nan")] * (longest - len(curves[v])) for v in options.variants]
        shown = axes.pcolormesh(range(1, longest + 1), range(len(table)), table, cmap="viridis", vmin=0, vmax=1)
        axes.set(title="Normalised entropy of the codes, mean over seeds", xlabel="position in the sequence")
        axes.set_yticks(range(len(table)), options.variants)
        axes.invert_yaxis()
        axes.grid(visible=False)
        figure.colorbar(shown)
        figure.savefig(path, dpi=130, facecolor="white")
