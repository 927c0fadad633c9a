"""The comparison that ends `evaluations.evidence`: figures over seeds, a table, plots, and what the spread allows."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from evaluations import record
from evaluations.evidence import EvidenceConfig
from evaluations.report_figures import COLOURS, STYLE
from evaluations.study import Spread, above, markdown

__all__ = ["claims", "compare", "gather"]

Figures = dict[str, dict[str, Spread]]
"""variant -> name of a figure -> its spread. Names: "psnr@16", "tail_entropy", "generator fd@64", ..."""

TAIL = {
    "tail_entropy": "normalised entropy of the codes in the second half of the sequence",
    "tail_usage": "share of the codebook that occurs at a position of the second half, mean",
    "tail_gain_mse": "share of the squared error at half of the tokens that the other half removes",
}


def compare(options: EvidenceConfig) -> dict[str, Any]:
    """Read all stages' results; write `table.md`, `evidence.json` and the plots into `options.out`."""
    figures, curves = gather(options)
    out = Path(options.out)
    found = claims(options, figures)
    body = {
        "question": dataclasses.asdict(options),
        "environment": {**record.environment(), "processor": _processor()},
        "seconds": _seconds(options),
        "figures": {v: {name: dataclasses.asdict(s) for name, s in of.items()} for v, of in figures.items()},
        "entropy_per_position": {variant: [s.mean for s in of] for variant, of in curves.items()},
        "claims": found,
    }
    record.write_json(out / "evidence.json", body)
    (out / "table.md").write_text(text(options, figures, found, body))
    _plot_quality(options, figures, out / "quality.png")
    _plot_tail(options, figures, out / "tail.png")
    _plot_positions(options, curves, out / "positions.png")
    print((out / "table.md").read_text())
    return body


def gather(options: EvidenceConfig) -> tuple[Figures, dict[str, list[Spread]]]:
    """Every figure's spread over seeds, and the entropy at every position."""
    figures: Figures = {}
    curves: dict[str, list[Spread]] = {}
    for variant in options.variants:
        folders = [options.folder(variant, seed) for seed in options.seeds]
        reconstructions = [_read(folder / "reconstruction/results.json")["tokens"] for folder in folders]
        diagnoses = [_read(folder / "diagnosis/diagnosis.json") for folder in folders]
        of = figures[variant] = {}
        for short, name in _short(options).items():
            for k in options.num_tokens:
                of[f"{short}@{k}"] = Spread.of(each[str(k)][name] for each in reconstructions)
        for name in TAIL:
            of[name] = Spread.of(each["summary"][name] for each in diagnoses)
        entropies = zip(*(each["positions"]["entropy"] for each in diagnoses), strict=True)
        curves[variant] = [Spread.of(values) for values in entropies]
        if variant in options.generators:
            for k in options.generator_num_tokens:
                metrics = [_read(folder / f"generation-{k}/results.json")["metrics"] for folder in folders]
                of[f"generator fd@{k}"] = Spread.of(each[options.frechet] for each in metrics)
    return figures, curves


def _short(options: EvidenceConfig) -> dict[str, str]:
    return {"psnr": "psnr", "perceptual": options.perceptual, "fd": options.frechet}


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


# ------------------------------------------------------------------------------------------------------ claims


def claims(options: EvidenceConfig, figures: Figures) -> list[str]:
    """Sentences about what the seeds' spread allows to be said, and what it does not."""
    most = max(options.num_tokens)
    shown = [*TAIL, f"psnr@{most}", f"fd@{most}"]
    said = []
    for name in shown:
        words: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
        for variant in options.variants:
            if variant != options.baseline:
                verdict = above(figures[variant][name], figures[options.baseline][name])
                words["not told apart from" if verdict is None else "above" if verdict else "below"].append(variant)
        parts = [f"{how} {options.baseline}: {', '.join(which)}" for how, which in words.items() if which]
        said.append(f"{name}: {'; '.join(parts)}.")
    said += [_falls(f"fd of {variant}", figures[variant], "fd", options.num_tokens) for variant in options.variants]
    for variant in options.generators:
        name = f"generator fd of {variant}"
        said.append(_falls(name, figures[variant], "generator fd", options.generator_num_tokens))
    return said


def _falls(title: str, of: Mapping[str, Spread], name: str, lengths: Sequence[int]) -> str:
    """Whether a distance falls with the number of tokens, and where it does not."""
    rises = []
    for few, many in pairwise(sorted(lengths)):
        before, after = of[f"{name}@{few}"], of[f"{name}@{many}"]
        if after.mean > before.mean:
            rises.append(f"from {few} to {many} tokens ({'beyond' if above(after, before) else 'within'} the spread)")
    return f"{title}: {'rises ' + ', '.join(rises) if rises else 'falls with every added token count'}."


# ------------------------------------------------------------------------------------------------------- table


def text(options: EvidenceConfig, figures: Figures, found: Sequence[str], body: Mapping[str, Any]) -> str:
    """The Markdown page."""
    environment = body["environment"]
    rows = [
        {
            "variant": variant, **{name: spread.text(_digits(name)) for name, spread in figures[variant].items()},
            "s": f"{body['seconds'][variant]:.0f}",
        }
        for variant in options.variants
    ]
    reconstruction = [f"{short}@{k}" for short in _short(options) for k in options.num_tokens]
    generated = [f"generator fd@{k}" for k in options.generator_num_tokens]
    return "\n".join([
        "# Tokenizer variants", "",
        f"Mean ± sample standard deviation over seeds {', '.join(map(str, options.seeds))}. `@k`: the first k tokens "
        f"are decoded. perceptual is {options.perceptual}, fd is {options.frechet}; s: seconds of tokenizer training.",
        f"Commit {environment['git_commit']}, torch {environment['torch']}, {environment['processor']}.", "",
        markdown(["variant", *reconstruction, "s"], rows),
        "The tail of the sequence:", "",
        markdown(["variant", *TAIL], rows),
        *(f"- {name}: {meaning}" for name, meaning in TAIL.items()), "",
        "One generator each, trained on full-length codes, sampled at several lengths:", "",
        markdown(["variant", *generated], [row for row in rows if row["variant"] in options.generators]),
        "What the spread allows (two figures differ when their means are further apart than their standard deviations "
        "together):", "", *(f"- {sentence}" for sentence in found), "",
    ])  # fmt: skip


def _digits(name: str) -> int:
    return 3 if name.startswith(("perceptual", "tail")) else 2


# ------------------------------------------------------------------------------------------------------- plots


def _plot_quality(options: EvidenceConfig, figures: Figures, path: Path) -> None:
    """Every metric against the number of tokens, with the generators' distance last."""
    panels = [(short, options.num_tokens, options.variants) for short in _short(options)]
    panels.append(("generator fd", options.generator_num_tokens, options.generators))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
        for axes, (name, lengths, variants) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for variant in variants:
                spreads = [figures[variant][f"{name}@{k}"] for k in lengths]
                axes.errorbar(
                    lengths, [s.mean for s in spreads], [s.deviation or 0.0 for s in spreads], capsize=2, markersize=4,
                    **_look(options, variant),
                )
            axes.set(title=name, xlabel="tokens", xscale="log")
            axes.set_xticks(lengths, [str(k) for k in lengths])
            axes.minorticks_off()
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=5)
        figure.savefig(path, dpi=130, facecolor="white")


def _plot_tail(options: EvidenceConfig, figures: Figures, path: Path) -> None:
    names = options.variants[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(TAIL), 0.9 + 0.32 * len(names)), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(TAIL), sharey=True), TAIL, strict=True):
            spreads = [figures[variant][name] for variant in names]
            bars = [s.deviation or 0.0 for s in spreads]
            axes.barh(names, [s.mean for s in spreads], xerr=bars, color=COLOURS[0], height=0.6)
            axes.set(title=name)
            axes.grid(axis="y", visible=False)
        figure.savefig(path, dpi=130, facecolor="white")


def _plot_positions(options: EvidenceConfig, curves: Mapping[str, Sequence[Spread]], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for variant in options.variants:
            look = {**_look(options, variant), "marker": ""}
            axes.plot(range(1, len(curves[variant]) + 1), [s.mean for s in curves[variant]], **look)
        axes.set(title="Normalised entropy of the codes, mean over seeds", xlabel="position in the sequence")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=130, facecolor="white")


def _look(options: EvidenceConfig, variant: str) -> dict[str, Any]:
    number = options.variants.index(variant)
    style = ("-", "--", ":")[number // len(COLOURS) % 3]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style, "marker": "o", "label": variant}

