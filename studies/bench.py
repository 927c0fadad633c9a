"""Which column of the bench predicts generation?

    bash scripts/bench_tokenizers.sh --tokenizers results/evidence/*/seed-*/tokenizer --data-path data/emoji_32/val \\
        --train-path data/emoji_32/train --out results/evidence_bench
    python -m studies.bench

correlates every column of the bench but the costs, on the tokenizers of a finished evidence study
(`scripts/evidence.sh`), with the distances of that study's samples, one for each embedded network. Writes
`<out>/table.md`, `<out>/correlations.json` and `<out>/correlations.png`.

Spearman's rank correlation over all tokenizers; 95% percentile intervals from a bootstrap that draws variants with all
their seeds, because seeds of one variant are alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import config
from common.config import opt
from common.errors import UserError
from common.numerics import numpy_generator
from evaluations import record
from evaluations.bench_table import column
from evaluations.figures import COLOURS, STYLE, markdown

SHOWN = ("psnr", "fd_efficientnet_lite2", "nats")
"""Columns that are drawn against the samples' distance."""


@dataclass
class BenchStudyConfig:
    bench: str = opt("results/evidence_bench/bench.json", "what evaluations.bench wrote about the study's tokenizers")
    evidence: str = opt("results/evidence/evidence.json", "what studies.tokenizers wrote")
    out: str = opt("results/evidence_bench", "folder of the table and the plot")
    targets: list[str] = opt(
        ["sample fd2", "sample fd0"], "figures of the study that columns are correlated with, at the full length"
    )
    leave_out: list[str] = opt([], "variants that are left out")
    resamples: int = opt(2000, "bootstrap resamples of the variants", low=1)
    seed: int = opt(0, "seed of the resamples")


def run(options: BenchStudyConfig) -> list[dict[str, Any]]:
    """Write table and plot; returns a row per column, the strongest correlation with the first target first."""
    bench, study = (json.loads(Path(path).read_text()) for path in (options.bench, options.evidence))
    variants, targets, rows = matched(bench, study, options.targets, options.leave_out)
    found = []
    for name in bench["columns"]:
        if column(name).section == "cost":
            continue  # of the architecture and the machine, not of the codes
        values = np.array([row["figures"].get(name, {}).get("value") for row in rows], float)  # None becomes NaN
        if np.isnan(values).any() or len(set(values)) < 3:
            continue  # not measured everywhere, or the same for all
        correlations = {}
        for target, distances in targets.items():
            low, high = interval(values, distances, variants, options.resamples, options.seed)
            correlations[target] = {"value": spearman(values, distances), "low": low, "high": high}
        found.append({
            "column": column(name).title, "name": name, "correlations": correlations, "expected": -column(name).better,
        })  # fmt: skip
    found.sort(key=lambda row: -abs(row["correlations"][options.targets[0]]["value"]))
    out = Path(options.out)
    body = {
        "targets": options.targets, "leave_out": options.leave_out, "tokenizers": len(rows),
        "variants": len(set(variants)), "rows": found,
        "resamples": options.resamples, "seed": options.seed, "environment": record.environment(),
    }  # fmt: skip
    record.write_json(out / "correlations.json", body)
    (out / "table.md").write_text(text(body))
    plot(body, rows, targets[options.targets[0]], variants, out / "correlations.png")
    print((out / "table.md").read_text())
    return found


def matched(
    bench: dict[str, Any], study: dict[str, Any], targets: list[str], leave_out: Sequence[str] = ()
) -> tuple[list[str], dict[str, np.ndarray], list[dict[str, Any]]]:
    """Variant and targets of every row of the bench at full length.

    Raises: UserError for a target or a variant that the study lacks, when a row is not a tokenizer of the study, and
    when fewer than three variants are left.
    """
    full, seeds = study["question"]["num_tokens"][-1], study["question"]["seeds"]
    known = sorted({key.partition("@")[0] for figures in study["figures"].values() for key in figures if "@" in key})
    if not targets or (wrong := [target for target in targets if target not in known]):
        raise UserError(f"--targets got {wrong if targets else targets}; expected some of {', '.join(known)}")
    if wrong := [variant for variant in leave_out if variant not in study["figures"]]:
        raise UserError(f"--leave-out got {wrong}; expected some of {', '.join(study['figures'])}")
    variants, rows = [], []
    found: dict[str, list[float]] = {target: [] for target in targets}
    for row in bench["rows"]:
        folder = re.search(r"([^/]+)/seed-(\d+)/tokenizer(/|$)", Path(row["path"]).as_posix())
        variant, number = folder.group(1, 2) if folder else ("", "")
        if variant not in study["figures"] or number not in map(str, seeds):
            raise UserError(
                f"the bench measured {row['path']!r}, which is not a tokenizer of the evidence study; expected "
                "results/evidence/VARIANT/seed-N/tokenizer"
            )
        if row["num_tokens"] == full and variant not in leave_out:
            variants.append(variant)
            for target, values in found.items():
                values.append(study["figures"][variant][f"{target}@{full}"][seeds.index(int(number))])
            rows.append(row)
    if len(set(variants)) < 3:
        raise UserError(f"{len(set(variants))} variants with {full} tokens are left; expected at least 3 to correlate")
    return variants, {target: np.array(values) for target, values in found.items()}, rows


def spearman(values: np.ndarray, targets: np.ndarray) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr  # half a second of --help otherwise

    return float(spearmanr(values, targets).statistic)


def interval(
    values: np.ndarray, targets: np.ndarray, variants: Sequence[str], resamples: int, seed: int
) -> tuple[float, float]:
    """95% percentile interval of Spearman's correlation over resampled variants."""
    names, rng = sorted(set(variants)), numpy_generator(seed, "variants")
    places = {name: np.flatnonzero(np.array(variants) == name) for name in names}
    found = []
    while len(found) < resamples:
        chosen = np.concatenate([places[names[i]] for i in rng.integers(len(names), size=len(names))])
        if len(set(values[chosen])) > 1:  # else the correlation is not defined
            found.append(spearman(values[chosen], targets[chosen]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def text(body: dict[str, Any]) -> str:
    """The Markdown page."""
    rows = [
        {
            "column": row["column"],
            **{
                target: "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**each)
                for target, each in row["correlations"].items()
            },
            "if good tokenizers generate well": {1: "+", -1: "-", 0: ""}[row["expected"]],
        }
        for row in body["rows"]
    ]
    left_out = f" ({', '.join(body['leave_out'])} are left out)" if body["leave_out"] else ""
    return "\n".join([
        "# Which column predicts generation?", "",
        f"Spearman correlation of each column with {' and with '.join(body['targets'])} over {body['tokenizers']} "
        f"tokenizers of {body['variants']} variants{left_out}, at full length; sample fd2 and fd0 are distances of "
        "samples in the features of EfficientNet-Lite2 and -Lite0, lower is better. Brackets: 95% percentile "
        f"intervals, {body['resamples']} bootstrap resamples of the variants, seed {body['seed']}. The last column is "
        "the sign that would be seen if the tokenizer that is better in this column also generated better.", "",
        markdown(["column", *body["targets"], "if good tokenizers generate well"], rows),
    ])  # fmt: skip


def plot(
    body: dict[str, Any], rows: Sequence[dict[str, Any]], distances: np.ndarray, variants: Sequence[str], path: Path
) -> None:
    """Correlations with their intervals, and three columns against the first target, `distances`."""
    import matplotlib as mpl  # here, because --help does not draw
    from matplotlib.figure import Figure

    found = body["rows"][::-1]
    names = [name for name in SHOWN if any(row["name"] == name for row in found)]
    order = list(dict.fromkeys(variants))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6 + 3.6 * len(names), max(4.0, 0.28 * len(found))), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(names), width_ratios=[1.6] + [1] * len(names))
        for at, target in enumerate(body["targets"]):
            heights = [place - 0.25 * at for place in range(len(found))]
            values, lows, highs = (
                [row["correlations"][target][key] for row in found] for key in ("value", "low", "high")
            )
            first.hlines(heights, lows, highs, COLOURS[at])
            first.plot(values, heights, "o", color=COLOURS[at], label=target)
        first.set_yticks(range(len(found)), [row["column"] for row in found])
        first.axvline(0, color=COLOURS[-1], linewidth=1)
        first.set(title="Spearman correlation with the samples' distance", xlim=(-1.05, 1.05))
        first.legend()
        for axes, name in zip(others, names, strict=True):
            for at, variant in enumerate(order):
                chosen = [i for i, each in enumerate(variants) if each == variant]
                axes.scatter(
                    [rows[i]["figures"][name]["value"] for i in chosen], distances[chosen], s=18, label=variant,
                    color=COLOURS[at % len(COLOURS)], marker="os^D"[at // len(COLOURS) % 4],
                )
            axes.set(title=column(name).title, ylabel=body["targets"][0])
        if others:
            figure.legend(*others[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.savefig(path, dpi=130, facecolor="white")


def main() -> None:
    run(config.parse(BenchStudyConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
