"""Does perturbation in training, or post-training on a generator's codes, bring the decoder closer to what it meets?

    bash scripts/evidence_robustok.sh --workers 2

For every seed: a tokenizer trained with and without latent perturbation, a GPT and a RAR on the codes of each, and a
decoder post-trained for each generator. Reconstructions (rFD), reconstructions from perturbed codes (pFD) and samples
(gFD) are measured before and after. Writes `<out>/table.md`, `<out>/evidence.json` and `<out>/before_after.png`.
Finished stages are skipped, so the same command continues.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tokenizer as tokenizers
from common import config
from common.config import opt
from common.containers import open_images
from common.data import batches
from common.images import from_pixels
from evaluations import record
from evaluations.figures import COLOURS, STYLE, markdown
from studies import study
from studies.study import Difference, Spread, Stage

EMOJI = "data/emoji_32"
VARIANTS = ("plain", "perturbed")
GENERATORS = {
    "gpt": ("--cfg-schedule", "constant"), "rar": ("--cfg-schedule", "power_cosine", "guidance.power=1.0")
}  # fmt: skip
"""Generator -> how it is guided."""


@dataclass
class RobustConfig:
    out: str = opt("results/evidence_robustok", "folder of all results")
    configs: str = opt("configs/evidence/robustok", "folder of the configs")
    data: str = opt(EMOJI, f"folder with train/ and val/; {EMOJI} is rendered from the installed drawings")
    seeds: list[int] = opt([0, 1, 2, 3, 4], "seeds of weights, data order and everything random in training")
    steps: int | None = opt(None, "steps of every training; null = as its config says")
    num_pairs: int = opt(1300, "pairs of each post-training")
    sigma: float = opt(0.7, "share of an image's own codes in them")
    num_samples: int = opt(520, "images sampled from a generator")
    num_reference_images: int = opt(1300, "training images that samples are compared with")
    cfg_scale: float = opt(2.0, "guidance scale of samples and pairs")
    alphas: list[float] = opt([0.5, 0.9], "pFD: probabilities that a code is redrawn")
    deltas: list[float] = opt([0.05], "pFD: shares of the codebook it is redrawn from")
    frechet: str = opt("fd_efficientnet_lite2", "distance: a name in evaluations.metrics")
    workers: int = opt(1, "stages that run at once")

    def folder(self, variant: str, seed: int) -> Path:
        return Path(self.out) / variant / f"seed-{seed}"


def run(options: RobustConfig) -> None:
    """All stages, then the comparison."""
    study.run(stages(options), options.out, options.workers)
    compare(options)


def stages(options: RobustConfig) -> list[Stage]:
    """Every stage, seed by seed, so that an early look shows whole comparisons."""
    made, data = [], ()
    if options.data == EMOJI:
        made, data = [Stage("emoji", ("studies.emoji", "--out", EMOJI, "--image-size", "32"))], ("emoji",)
    for seed in options.seeds:
        for variant in VARIANTS:
            name, folder = f"{variant}/seed-{seed}", options.folder(variant, seed)
            train = _train(options, "tokenizer", variant, folder / "tokenizer", seed)
            made += [
                Stage(f"{name}/tokenizer", train, data),
                Stage(f"{name}/pfid", _pfid(options, folder / "tokenizer", folder / "pfid"), (f"{name}/tokenizer",)),
                Stage(f"{name}/codes", _codes(options, folder), (f"{name}/tokenizer",)),
            ]
            for generator in GENERATORS:
                made += _generator_stages(options, name, folder, generator, seed)
    return made


def _generator_stages(options: RobustConfig, name: str, folder: Path, generator: str, seed: int) -> list[Stage]:
    """A generator, its samples, pairs, the decoder post-trained on them, and both measurements again."""
    own, post = folder / generator, folder / f"post-{generator}"
    train = _train(options, "autoregressive", generator, own, seed, f"data.codes={folder}/codes")
    drawn = ("--gpt-ckpt", str(own), "--cfg-scale", str(options.cfg_scale), *GENERATORS[generator])
    pairs = (
        "autoregressive.make_pairs", *drawn, "--vq-ckpt", f"{folder}/tokenizer", "--data-path", f"{options.data}/train",
        "--out", f"{folder}/pairs-{generator}", "--num-samples", str(options.num_pairs), "--sigma", str(options.sigma),
        "--seed", str(seed), "--batch-size", "130",
    )  # fmt: skip
    post_train = _train(
        options, "tokenizer", "post", post, seed, f"data.pairs={folder}/pairs-{generator}", f"init={folder}/tokenizer"
    )

    def sample(tokenizer: str, name: str) -> tuple[str, ...]:
        return (
            "evaluations.generation", *drawn, "--vq-ckpt", f"{folder}/{tokenizer}", "--frechet", options.frechet,
            "--reference-path", f"{options.data}/train", "--num-reference-images", str(options.num_reference_images),
            "--num-fid-samples", str(options.num_samples), "--clear-cache", "--per-proc-batch-size", "130",
            "--sample-dir", f"{folder}/{name}",
        )  # fmt: skip

    trained, paired, done = f"{name}/{generator}", f"{name}/pairs-{generator}", f"{name}/post-{generator}"
    before, after = f"generation-{generator}", f"generation-post-{generator}"
    return [
        Stage(trained, train, (f"{name}/codes",)),
        Stage(f"{name}/{before}", sample("tokenizer", before), (trained,)),
        Stage(paired, pairs, (trained,)),
        Stage(done, post_train, (paired,)),
        Stage(f"{name}/pfid-post-{generator}", _pfid(options, post, folder / f"pfid-post-{generator}"), (done,)),
        Stage(f"{name}/{after}", sample(f"post-{generator}", after), (done,)),
    ]


def _train(options: RobustConfig, package: str, file: str, out: Path, seed: int, *more: str) -> tuple[str, ...]:
    config_file = f"{options.configs}/{file}.yaml"
    words = [f"{package}.train", "--config", config_file, f"run.out={out}", f"run.seed={seed}", *more]
    if package == "tokenizer":
        words.append(f"data.root={options.data}/train")
    return (*words, f"run.steps={options.steps}") if options.steps else tuple(words)


def _codes(options: RobustConfig, folder: Path) -> tuple[str, ...]:
    return (
        "autoregressive.extract_codes", "--data-path", f"{options.data}/train", "--vq-ckpt", f"{folder}/tokenizer",
        "--code-path", f"{folder}/codes", "--ten-crop", "crop_ranges=[1.1]", "--precision", "bf16",
    )  # fmt: skip


def _pfid(options: RobustConfig, tokenizer: Path, out: Path) -> tuple[str, ...]:
    grid = {"alphas": options.alphas, "deltas": options.deltas}
    words = [word for name, values in grid.items() for word in (f"--{name}", f"[{','.join(map(str, values))}]")]
    return (
        "evaluations.pfid", "--vq-ckpt", str(tokenizer), "--data-path", f"{options.data}/val", "--frechet",
        options.frechet, *words, "--sample-dir", str(out),
    )  # fmt: skip


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
        data = open_images(f"{options.data}/val", before.image_size)
        for batch in batches(data, range(len(data)), 130):
            images = from_pixels(batch["pixels"])
            codes = before.encode(images)
            changed += sum(int((model.encode(images) != codes).sum()) for model in after)
    return changed


def claims(rows: Rows, changed: dict[str, int]) -> list[str]:
    """Every comparison's paired differences over seeds."""
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
    """The paired difference over seeds, its 95% interval and what it allows to say."""
    found = Difference.of(one, other)
    return f"{found.text(1)} ({'not decided' if not found.sign else 'higher' if found.sign > 0 else 'lower'})"


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
        f"to training images. Post-trained on {options.num_pairs} pairs, sigma {options.sigma}. "
        "Below: paired differences over seeds with 95% intervals by Student's t.", "",
        markdown(columns, shown), *(f"- {sentence}" for sentence in said), "",
    ])  # fmt: skip


def plot(rows: Rows, path: Path) -> None:
    """Every figure of every decoder, one panel a figure."""
    import matplotlib as mpl  # here, because --help does not draw
    from matplotlib.figure import Figure

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


def main() -> None:
    run(config.parse(RobustConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
