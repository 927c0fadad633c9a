"""The comparison that ends `evaluations.evidence_robustok`: before and after, over seeds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

import tokenizer as tokenizers
from common.data import ImageFolder, batches
from common.images import from_pixels
from evaluations import record
from evaluations.evidence_robustok import GENERATORS, VARIANTS, RobustConfig
from evaluations.report_figures import COLOURS, STYLE
from evaluations.study import Spread, above, markdown

__all__ = ["compare"]

Rows = dict[tuple[str, str], dict[str, list[float]]]
"""(variant, decoder) -> figure -> its value for every seed; decoders: "main", "post-gpt", "post-rar"."""


def compare(options: RobustConfig) -> dict[str, Any]:
    """Read all stages' results; write `table.md`, `evidence.json` and `before_after.png` into `options.out`."""
    out, rows = Path(options.out), gather(options)
    changed = {variant: changed_codes(options, variant) for variant in VARIANTS}
    said = claims(rows, changed)
    body = {
        "question": dataclasses.asdict(options), "environment": record.environment(), "claims": said,
        "figures": {f"{variant} {decoder}": figures for (variant, decoder), figures in rows.items()},
        "codes_changed_by_post_training": changed,
    }
    record.write_json(out / "evidence.json", body)
    (out / "table.md").write_text(text(options, rows, said))
    plot(rows, out / "before_after.png")
    print((out / "table.md").read_text())
    return body


def gather(options: RobustConfig) -> Rows:
    """The figures of every decoder: rFD, pFD, and gFD of the generators it was measured with."""
    rows: Rows = {}
    for variant in VARIANTS:
        for decoder in ("main", *(f"post-{generator}" for generator in GENERATORS)):
            suffix = "" if decoder == "main" else f"-{decoder}"
            figures = rows[variant, decoder] = {"rFD": [], "pFD": []}
            for seed in options.seeds:
                folder = options.folder(variant, seed)
                [found] = _read(folder / f"pfid{suffix}/results.json")["tokens"].values()
                figures["rFD"].append(found["unperturbed"][options.frechet])
                figures["pFD"].append(found["mean"][f"p{options.frechet}"])
                for generator in GENERATORS:
                    if decoder in ("main", f"post-{generator}"):
                        name = f"generation-{generator}" if decoder == "main" else f"generation-{decoder}"
                        metrics = _read(folder / name / "results.json")["metrics"]
                        figures.setdefault(f"gFD {generator}", []).append(metrics[options.frechet])
    return rows


@torch.inference_mode()
def changed_codes(options: RobustConfig, variant: str) -> int:
    """How many codes of the held-out images post-training changed, over all seeds and generators."""
    changed = 0
    for seed in options.seeds:
        folder = options.folder(variant, seed)
        before = tokenizers.load(folder / "tokenizer")
        after = [tokenizers.load(folder / f"post-{generator}") for generator in GENERATORS]
        data = ImageFolder(f"{options.data}/val", before.image_size)
        for batch in batches(data, range(len(data)), 130):
            images = from_pixels(batch["pixels"])
            codes = before.encode(images)
            changed += sum(int((model.encode(images) != codes).sum()) for model in after)
    return changed


def claims(rows: Rows, changed: dict[str, int]) -> list[str]:
    """What the seeds' spread allows to be said about every comparison."""
    said = [f"Post-training changed {sum(changed.values())} codes of the held-out images."]
    for name in rows["plain", "main"]:
        pair = (rows["perturbed", "main"][name], rows["plain", "main"][name])
        said.append(f"Perturbation in training, {name}: {_verdict(*pair)}.")
    for (variant, decoder), figures in rows.items():
        if decoder != "main":
            found = [f"{name} {_verdict(values, rows[variant, 'main'][name])}" for name, values in figures.items()]
            said.append(f"Post-training for {decoder.removeprefix('post-')}, {variant} tokenizer: {', '.join(found)}.")
    return said


def _verdict(one: list[float], other: list[float]) -> str:
    change = sum(one) / sum(other) - 1
    if len(one) < 2:
        return f"{change:+.0%} (one seed, no spread)"
    higher = above(Spread.of(one), Spread.of(other))
    return f"{change:+.0%} ({'within the spread' if higher is None else 'higher' if higher else 'lower'})"


def text(options: RobustConfig, rows: Rows, said: list[str]) -> str:
    """The Markdown page."""
    columns = ["tokenizer", "decoder", "rFD", "pFD", *(f"gFD {generator}" for generator in GENERATORS)]
    shown = [
        {"tokenizer": variant, "decoder": decoder, **{name: Spread.of(of).text() for name, of in figures.items()}}
        for (variant, decoder), figures in rows.items()
    ]
    return "\n".join([
        "# Perturbation in training and post-training of the decoder", "",
        f"Mean ± sample standard deviation over seeds {', '.join(map(str, options.seeds))} of {options.frechet} (not "
        "FID): rFD of held-out reconstructions to their originals, pFD of reconstructions from perturbed codes (mean "
        f"over alpha {options.alphas}, delta {options.deltas} of the codebook), gFD of {options.num_samples} samples "
        f"to training crops. Post-trained on {options.num_pairs} pairs, sigma {options.sigma}.", "",
        markdown(columns, shown), *(f"- {sentence}" for sentence in said), "",
    ])  # fmt: skip


def plot(rows: Rows, path: Path) -> None:
    """Every figure of every decoder, one panel a figure."""
    names = list(rows["plain", "main"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(names), 3.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            shown = [(key, Spread.of(figures[name])) for key, figures in rows.items() if name in figures]
            for place, ((variant, _), spread) in enumerate(shown):
                axes.errorbar(
                    place, spread.mean, spread.deviation if spread.count > 1 else None, fmt="o", capsize=3,
                    color=COLOURS[VARIANTS.index(variant)],
                )
            axes.set_xticks(range(len(shown)), [f"{variant}\n{decoder}" for (variant, decoder), _ in shown])
            axes.set(title=name)
            axes.tick_params(axis="x", labelsize=6)
        figure.savefig(path, dpi=130, facecolor="white")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
