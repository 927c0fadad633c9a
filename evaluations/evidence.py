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

from dataclasses import dataclass
from pathlib import Path

from common import config
from common.config import opt
from common.errors import UserError
from evaluations import study
from evaluations.study import Stage

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


def main() -> None:
    options = config.parse(EvidenceConfig, about=__doc__)
    run(options)


def run(options: EvidenceConfig) -> None:
    """All stages, then the comparison."""
    study.run(stages(options), options.out, options.workers, options.gpus)
    from evaluations.evidence_job import compare

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
        words = ("common.photos", "--out", PHOTOS, "--image-size", "32")
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


if __name__ == "__main__":
    config.main(main)
