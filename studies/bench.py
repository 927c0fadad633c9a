"""Which column of the bench predicts generation?

    bash scripts/bench_tokenizers.sh --tokenizers results/evidence/*/seed-*/tokenizer --data-path data/emoji_32/val \\
        --train-path data/emoji_32/train --out results/evidence_bench
    python -m studies.bench

correlates every column of the bench but the costs, on the tokenizers of a finished evidence study
(`scripts/evidence.sh`), with the distance of that study's samples. Writes `<out>/table.md`, `<out>/correlations.json`
and `<out>/correlations.png`.

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
    target: str = opt("sample fd2", "figure of the study that columns are correlated with, at the full length")
    resamples: int = opt(2000, "bootstrap resamples of the variants", low=1)
    seed: int = opt(0, "seed of the resamples")


def run(options: BenchStudyConfig) -> list[dict[str, Any]]:
    """Write table and plot; returns a row per column, the strongest correlation first."""
    bench, study = (json.loads(Path(path).read_text()) for path in (options.bench, options.evidence))
    variants, targets, rows = matched(bench, study, options.target)
    found = []
    for name in bench["columns"]:
        if column(name).section == "cost":
            continue  # of the architecture and the machine, not of the codes
        values = np.array([row["figures"].get(name, {}).get("value") for row in rows], float)  # None becomes NaN
        if np.isnan(values).any() or len(set(values)) < 3:
            continue  # not measured everywhere, or the same for all
        low, high = interval(values, targets, variants, options.resamples, options.seed)
        found.append({
            "column": column(name).title, "name": name, "correlation": spearman(values, targets),
            "low": low, "high": high, "expected": -column(name).better,
        })  # fmt: skip
    found.sort(key=lambda row: -abs(row["correlation"]))
    out = Path(options.out)
    body = {
        "target": options.target, "tokenizers": len(rows), "variants": len(set(variants)), "rows": found,
        "resamples": options.resamples, "seed": options.seed, "environment": record.environment(),
    }  # fmt: skip
    record.write_json(out / "correlations.json", body)
    (out / "table.md").write_text(text(body))
    plot(body, rows, targets, variants, out / "correlations.png")
    print((out / "table.md").read_text())
    return found


def matched(
    bench: dict[str, Any], study: dict[str, Any], target: str
) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
    """Variant and target of every row of the bench at full length.

    Raises: UserError for a target that the study lacks, and when a row is not a tokenizer of the study.
    """
    full, seeds = study["question"]["num_tokens"][-1], study["question"]["seeds"]
    known = sorted({key.partition("@")[0] for figures in study["figures"].values() for key in figures if "@" in key})
    if target not in known:
        raise UserError(f"--target got {target!r}; expected one of {', '.join(known)}")
    variants, targets, rows = [], [], []
    for row in bench["rows"]:
        folder = re.search(r"([^/]+)/seed-(\d+)/tokenizer(/|$)", Path(row["path"]).as_posix())
        variant, number = folder.group(1, 2) if folder else ("", "")
        if variant not in study["figures"] or number not in map(str, seeds):
            raise UserError(
                f"the bench measured {row['path']!r}, which is not a tokenizer of the evidence study; expected "
                "results/evidence/VARIANT/seed-N/tokenizer"
            )
        if row["num_tokens"] == full:
            variants.append(variant)
            targets.append(study["figures"][variant][f"{target}@{full}"][seeds.index(int(number))])
            rows.append(row)
    return variants, np.array(targets), rows


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
            "column": row["column"], "Spearman": f"{row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
            "if good tokenizers generate well": {1: "+", -1: "-", 0: ""}[row["expected"]],
        }
        for row in body["rows"]
    ]  # fmt: skip
    return "\n".join([
        "# Which column predicts generation?", "",
        f"Spearman correlation of each column with {body['target']} (lower is better) over {body['tokenizers']} "
        f"tokenizers of {body['variants']} variants, at full length. Brackets: 95% percentile intervals, "
        f"{body['resamples']} bootstrap resamples of the variants, seed {body['seed']}. The last column is the sign "
        "that would be seen if the tokenizer that is better in this column also generated better.", "",
        markdown(["column", "Spearman", "if good tokenizers generate well"], rows),
    ])  # fmt: skip


def plot(
    body: dict[str, Any], rows: Sequence[dict[str, Any]], targets: np.ndarray, variants: Sequence[str], path: Path
) -> None:
    """Correlations with their intervals, and three columns against the samples' distance."""
    import matplotlib as mpl  # here, because --help does not draw
    from matplotlib.figure import Figure

    found = body["rows"][::-1]
    names = [name for name in SHOWN if any(row["name"] == name for row in found)]
    order = list(dict.fromkeys(variants))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6 + 3.6 * len(names), max(4.0, 0.28 * len(found))), layout="constrained")
        first, *others = figure.subplots(1, 1 + len(names), width_ratios=[1.6] + [1] * len(names))
        centres = [row["correlation"] for row in found]
        first.hlines(range(len(found)), [row["low"] for row in found], [row["high"] for row in found], COLOURS[0])
        first.plot(centres, range(len(found)), "o", color=COLOURS[0])
        first.set_yticks(range(len(found)), [row["column"] for row in found])
        first.axvline(0, color=COLOURS[-1], linewidth=1)
        first.set(title=f"Spearman correlation with {body['target']}", xlim=(-1.05, 1.05))
        for axes, name in zip(others, names, strict=True):
            for at, variant in enumerate(order):
                chosen = [i for i, each in enumerate(variants) if each == variant]
                axes.scatter(
                    [rows[i]["figures"][name]["value"] for i in chosen], targets[chosen], s=18, label=variant,
                    color=COLOURS[at % len(COLOURS)], marker="os^D"[at // len(COLOURS) % 4],
                )
            axes.set(title=column(name).title, ylabel=body["target"])
        if others:
            figure.legend(*others[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.savefig(path, dpi=130, facecolor="white")


def main() -> None:
    run(config.parse(BenchStudyConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
