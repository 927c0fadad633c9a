"""Train the tokenizer variants with several seeds, measure them and their generators, and compare.

    bash scripts/evidence.sh --workers 2

writes `<out>/table.md`, `<out>/evidence.json`, `<out>/quality.png`, `<out>/tail.png` and `<out>/positions.png`. Without
options it is the smallest scale, on the embedded photographs. `--configs` names a folder with a config per variant and
`gpt.yaml` for the generators, `--train-path` and `--val-path` the images: that is all that another scale takes.

Every stage (a tokenizer, its measurements, its codes, a generator, its samples) is a job that is skipped when it is
finished, so the same command continues. It may also be started several times at once, with `--seeds` that differ or
not: who works on a stage holds it. The comparison is written by whoever finds everything finished.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from common import config
from common.config import opt
from common.errors import UserError
from evaluations import record
from evaluations.figures import COLOURS, STYLE, markdown
from studies import study
from studies.study import Spread, Stage, above

PHOTOS = "data/photos_32"
FINE_TUNED = {"retok_finetune": "retok"}
"""Variants that start from another's tokenizer of the same seed."""


@dataclass
class EvidenceConfig:
    out: str = opt("results/evidence", "folder of all results")
    configs: str = opt("configs/evidence/photos", "folder of the variants' configs and of gpt.yaml")
    train_path: str = opt(f"{PHOTOS}/train", f"training images; {PHOTOS} is cut from the embedded photographs")
    val_path: str = opt(f"{PHOTOS}/val", "held-out images of the same classes")
    variants: list[str] = opt(
        [
            "fixed", "nested_dropout", "redundant", "hierarchical", "retok", "retok_finetune", "cross_length",
            "self_alignment", "all",
        ],
        "configs to train, compare and show, in this order",
    )  # fmt: skip
    baseline: str = opt("nested_dropout", "the variant that the others are compared with")
    generators: list[str] = opt(["nested_dropout", "retok", "self_alignment"], "variants that get a generator, too")
    seeds: list[int] = opt([0, 1, 2], "seeds of weights, data order and everything random in training")
    steps: int | None = opt(None, "steps of every tokenizer from scratch; null = as its config says")
    finetune_steps: int | None = opt(None, "steps of the variants that fine-tune; null = as the config says")
    generator_steps: int | None = opt(None, "steps of every generator; null = as its config says")
    num_tokens: list[int] = opt([8, 16, 32, 64], "token counts at which reconstructions are measured")
    generator_num_tokens: list[int] = opt([16, 32, 64], "token counts at which one generator is sampled")
    num_samples: int = opt(520, "images sampled from a generator at every token count")
    num_reference_images: int = opt(1300, "training images that samples are compared with")
    cfg_scale: float = opt(2.0, "guidance scale of the samples")
    perceptual: str = opt("perceptual_efficientnet_lite0", "perceptual distance: a name in evaluations.metrics")
    frechet: str = opt("fd_efficientnet_lite2", "distribution distance: a name in evaluations.metrics")
    workers: int = opt(1, "stages that run at once")
    gpus: int = opt(1, "processes per job")

    def __post_init__(self) -> None:
        if isinstance(self.variants, list) and isinstance(self.seeds, list) and not (self.variants and self.seeds):
            raise UserError("--variants or --seeds is empty; expected at least one of each")

    def folder(self, variant: str, seed: int) -> Path:
        return Path(self.out) / variant / f"seed-{seed}"


def run(options: EvidenceConfig) -> None:
    """All stages, then the comparison."""
    study.run(stages(options), options.out, options.workers, options.gpus)
    from studies.tokenizers import compare

    compare(options)


def stages(options: EvidenceConfig) -> list[Stage]:
    """Every stage, seed by seed, so that an early look shows whole comparisons."""
    unknown = [name for name in options.variants if not Path(options.configs, f"{name}.yaml").is_file()]
    if unknown:
        raise UserError(f"--variants names {unknown[0]!r}, but there is no {options.configs}/{unknown[0]}.yaml")
    lacking = [name for name in {options.baseline, *options.generators} if name not in options.variants]
    lacking += [base for name, base in FINE_TUNED.items() if name in options.variants and base not in options.variants]
    if lacking:
        raise UserError(f"--variants lacks {lacking[0]!r}, which --baseline, --generators or fine-tuning needs; add it")
    made: list[Stage] = []
    if _embedded(options):
        words = ("studies.photos", "--out", PHOTOS, "--image-size", "32")
        made.append(Stage("photos", words))
    for seed in options.seeds:
        for variant in options.variants:
            made += _tokenizer_stages(options, variant, seed)
        for variant in options.generators:
            made += _generator_stages(options, variant, seed)
    return made


def _embedded(options: EvidenceConfig) -> bool:
    return options.train_path == f"{PHOTOS}/train"


def _tokenizer_stages(options: EvidenceConfig, variant: str, seed: int) -> list[Stage]:
    name, folder = f"{variant}/seed-{seed}", options.folder(variant, seed)
    data = ("photos",) if _embedded(options) else ()
    train = [
        "tokenizer.train", "--config", f"{options.configs}/{variant}.yaml", f"data.root={options.train_path}",
        f"val_root={options.val_path}", f"run.out={folder}/tokenizer", f"run.seed={seed}",
    ]
    needs, steps = data, options.steps
    if variant in FINE_TUNED:
        train.append(f"init={options.folder(FINE_TUNED[variant], seed)}/tokenizer")
        needs, steps = (f"{FINE_TUNED[variant]}/seed-{seed}/tokenizer",), options.finetune_steps
    if steps:
        train.append(f"run.steps={steps}")
    measure = (
        "--vq-ckpt", f"{folder}/tokenizer", "--data-path", options.val_path, "--perceptual", options.perceptual,
    )
    reconstruct = (
        "evaluations.reconstruction", *measure, "--frechet", options.frechet, "--clear-cache",
        "--num-tokens", f"[{','.join(map(str, options.num_tokens))}]", "--sample-dir", f"{folder}/reconstruction",
    )
    diagnose = ("evaluations.diagnose", *measure, "--every", "16", "--out", f"{folder}/diagnosis")
    trained = (f"{name}/tokenizer",)
    return [
        Stage(f"{name}/tokenizer", tuple(train), needs),
        Stage(f"{name}/reconstruction", reconstruct, trained),
        Stage(f"{name}/diagnosis", diagnose, trained),
    ]


def _generator_stages(options: EvidenceConfig, variant: str, seed: int) -> list[Stage]:
    name, folder, train = f"{variant}/seed-{seed}", options.folder(variant, seed), options.train_path
    extract = (
        "autoregressive.extract_codes", "--data-path", train, "--vq-ckpt", f"{folder}/tokenizer",
        "--code-path", f"{folder}/codes",
    )
    words = [
        "autoregressive.train", "--config", f"{options.configs}/gpt.yaml", f"data.codes={folder}/codes",
        f"run.out={folder}/gpt", f"run.seed={seed}",
    ]
    if options.generator_steps:
        words.append(f"run.steps={options.generator_steps}")
    made = [
        Stage(f"{name}/codes", extract, (f"{name}/tokenizer",)),
        Stage(f"{name}/gpt", tuple(words), (f"{name}/codes",)),
    ]
    for k in options.generator_num_tokens:
        sample = (
            "evaluations.generation", "--gpt-ckpt", f"{folder}/gpt", "--vq-ckpt", f"{folder}/tokenizer",
            "--num-token", str(k), "--cfg-scale", str(options.cfg_scale), "--cfg-schedule", "constant",
            "--num-fid-samples", str(options.num_samples), "--reference-path", train,
            "--num-reference-images", str(options.num_reference_images), "--frechet", options.frechet,
            "--clear-cache", "--per-proc-batch-size", "130", "--sample-dir", f"{folder}/generation-{k}",
        )
        made.append(Stage(f"{name}/generation-{k}", sample, (f"{name}/gpt",)))
    return made


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


def main() -> None:
    options = config.parse(EvidenceConfig, about=__doc__)
    run(options)


if __name__ == "__main__":
    config.main(main)
