"""Does perturbation in training, or post-training on a generator's codes, bring the decoder closer to what it meets?

    bash scripts/evidence_robustok.sh --workers 2

For every seed: a tokenizer trained with and without latent perturbation, a GPT and a RAR on the codes of each, and a
decoder post-trained for each generator. Reconstructions (rFD), reconstructions from perturbed codes (pFD) and samples
(gFD) are measured before and after. Writes `<out>/table.md`, `<out>/evidence.json` and `<out>/before_after.png`.
Finished stages are skipped, so the same command continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import config
from common.config import opt
from evaluations import study
from evaluations.study import Stage

PHOTOS = "data/photos_32"
VARIANTS = ("plain", "perturbed")
GENERATORS = {
    "gpt": ("--cfg-schedule", "constant"), "rar": ("--cfg-schedule", "power_cosine", "guidance.power=1.0")
}  # fmt: skip
"""Generator -> how it is guided."""


@dataclass
class RobustConfig:
    out: str = opt("results/evidence_robustok", "folder of all results")
    configs: str = opt("configs/evidence/robustok", "folder of the configs")
    data: str = opt(PHOTOS, f"folder with train/ and val/; the default {PHOTOS} is cut from the embedded photographs")
    seeds: list[int] = opt([0, 1, 2], "seeds of weights, data order and everything random in training")
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


def main() -> None:
    run(config.parse(RobustConfig, about=__doc__))


def run(options: RobustConfig) -> None:
    """All stages, then the comparison."""
    study.run(stages(options), options.out, options.workers)
    from evaluations.evidence_robustok_job import compare

    compare(options)


def stages(options: RobustConfig) -> list[Stage]:
    """Every stage, seed by seed, so that an early look shows whole comparisons."""
    made, data = [], ()
    if options.data == PHOTOS:
        made, data = [Stage("photos", ("common.photos", "--out", PHOTOS, "--image-size", "32"))], ("photos",)
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
        "--code-path", f"{folder}/codes",
    )  # fmt: skip


def _pfid(options: RobustConfig, tokenizer: Path, out: Path) -> tuple[str, ...]:
    grid = {"alphas": options.alphas, "deltas": options.deltas}
    words = [word for name, values in grid.items() for word in (f"--{name}", f"[{','.join(map(str, values))}]")]
    return (
        "evaluations.pfid", "--vq-ckpt", str(tokenizer), "--data-path", f"{options.data}/val", "--frechet",
        options.frechet, *words, "--sample-dir", str(out),
    )  # fmt: skip


if __name__ == "__main__":
    config.main(main)
