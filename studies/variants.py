"""The study of tokenizer variants: its options, and every stage's command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import opt
from common.errors import UserError
from studies.study import Stage

__all__ = ["FINE_TUNED", "EvidenceConfig", "lengths", "stages"]

EMOJI = "data/emoji_32"
FINE_TUNED = {"retok_finetune": "retok"}
"""Variant that fine-tunes a decoder -> the variant it starts from (same seed), whose codes and generator it shares."""
FULL_LENGTH_ONLY = ("grid",)
"""Variants whose tokens have no order, so that no prefix is decoded."""


@dataclass
class EvidenceConfig:
    out: str = opt("results/evidence", "folder of all results")
    configs: str = opt("configs/evidence/emoji", "folder of the variants' configs and of gpt.yaml")
    train_path: str = opt(f"{EMOJI}/train", f"training images; {EMOJI} is rendered from the installed drawings")
    val_path: str = opt(f"{EMOJI}/val", "held-out images of the same classes")
    variants: list[str] = opt(
        [
            "fixed", "nested_dropout", "redundant", "hierarchical", "retok", "retok_finetune", "cross_length",
            "self_alignment", "padded_alignment", "all", "titok", "one_d_piece", "grid",
        ],
        "configs to train, compare and show, in this order",
    )  # fmt: skip
    baseline: str = opt("nested_dropout", "the variant that the others are compared with")
    seeds: list[int] = opt([0, 1, 2, 3, 4], "seeds of weights, data order and everything random in training")
    steps: int | None = opt(None, "steps of every tokenizer from scratch; null = as its config says")
    finetune_steps: int | None = opt(None, "steps of the variants that fine-tune; null = as the config says")
    generator_steps: int | None = opt(None, "steps of every generator; null = as its config says")
    num_tokens: list[int] = opt(
        [8, 16, 32, 64], "token counts of reconstructions and of samples, ascending; the last is the full length"
    )
    every: int = opt(2, "one sample for every so many training images", low=1)
    num_images: int | None = opt(None, "training images that samples are compared with; null = all", low=1)
    cfg_scale: float = opt(2.0, "guidance scale of the samples")
    perceptual: str = opt("perceptual_efficientnet_lite0", "perceptual distance: a name in evaluations.metrics")
    frechet: str = opt("fd_efficientnet_lite2", "distance of reconstructions: a name in evaluations.metrics")
    workers: int = opt(1, "stages that run at once")
    gpus: int = opt(1, "processes per job")

    def __post_init__(self) -> None:
        if isinstance(self.variants, list) and isinstance(self.seeds, list) and not (self.variants and self.seeds):
            raise UserError("--variants or --seeds is empty; expected at least one of each")

    def folder(self, variant: str, seed: int) -> Path:
        return Path(self.out) / variant / f"seed-{seed}"


def lengths(options: EvidenceConfig, variant: str) -> list[int]:
    """Token counts at which a variant is measured."""
    return options.num_tokens[-1:] if variant in FULL_LENGTH_ONLY else options.num_tokens


def stages(options: EvidenceConfig) -> list[Stage]:
    """Every stage, seed by seed, so that an early look shows whole comparisons."""
    unknown = [name for name in options.variants if not Path(options.configs, f"{name}.yaml").is_file()]
    if unknown:
        raise UserError(f"--variants names {unknown[0]!r}, but there is no {options.configs}/{unknown[0]}.yaml")
    lacking = [options.baseline] if options.baseline not in options.variants else []
    lacking += [base for name, base in FINE_TUNED.items() if name in options.variants and base not in options.variants]
    if lacking:
        raise UserError(f"--variants lacks {lacking[0]!r}, which --baseline or fine-tuning needs; add it")
    made: list[Stage] = []
    if _embedded(options):
        made.append(Stage("emoji", ("studies.emoji", "--out", EMOJI, "--image-size", "32")))
    for seed in options.seeds:
        for variant in options.variants:
            made += _tokenizer_stages(options, variant, seed) + _generator_stages(options, variant, seed)
    return made


def _embedded(options: EvidenceConfig) -> bool:
    return options.train_path == f"{EMOJI}/train"


def _tokenizer_stages(options: EvidenceConfig, variant: str, seed: int) -> list[Stage]:
    name, folder = f"{variant}/seed-{seed}", options.folder(variant, seed)
    train = [
        "tokenizer.train", "--config", f"{options.configs}/{variant}.yaml", f"data.root={options.train_path}",
        f"val_root={options.val_path}", f"run.out={folder}/tokenizer", f"run.seed={seed}",
    ]  # fmt: skip
    needs, steps = ("emoji",) if _embedded(options) else (), options.steps
    if variant in FINE_TUNED:
        train.append(f"init={options.folder(FINE_TUNED[variant], seed)}/tokenizer")
        needs, steps = (f"{FINE_TUNED[variant]}/seed-{seed}/tokenizer",), options.finetune_steps
    if steps:
        train.append(f"run.steps={steps}")
    measure = (
        "--vq-ckpt", f"{folder}/tokenizer", "--data-path", options.val_path, "--perceptual", options.perceptual,
    )  # fmt: skip
    reconstruct = (
        "evaluations.reconstruction", *measure, "--frechet", options.frechet, "--clear-cache",
        "--num-tokens", _listed(lengths(options, variant)), "--sample-dir", f"{folder}/reconstruction",
    )  # fmt: skip
    diagnose = ("evaluations.diagnose", *measure, "--every", "16", "--out", f"{folder}/diagnosis")
    trained = (f"{name}/tokenizer",)
    return [
        Stage(f"{name}/tokenizer", tuple(train), needs),
        Stage(f"{name}/reconstruction", reconstruct, trained),
        Stage(f"{name}/diagnosis", diagnose, trained),
    ]


def _generator_stages(options: EvidenceConfig, variant: str, seed: int) -> list[Stage]:
    """Codes of ten views, a generator and its loss, unless they are another variant's; then samples."""
    source = FINE_TUNED.get(variant, variant)
    name, folder = f"{source}/seed-{seed}", options.folder(source, seed)
    full, made = options.num_tokens[-1], []
    if source == variant:
        extract = (
            "autoregressive.extract_codes", "--data-path", options.train_path, "--vq-ckpt", f"{folder}/tokenizer",
            "--code-path", f"{folder}/codes", "--ten-crop", "crop_ranges=[1.1]", "--precision", "bf16",
        )  # fmt: skip
        words = [
            "autoregressive.train", "--config", f"{options.configs}/gpt.yaml", f"data.codes={folder}/codes",
            f"run.out={folder}/gpt", f"run.seed={seed}",
        ]  # fmt: skip
        if options.generator_steps:
            words.append(f"run.steps={options.generator_steps}")
        loss = (
            "evaluations.val_loss", "--gpt-ckpt", f"{folder}/gpt", "--vq-ckpt", f"{folder}/tokenizer", "--data-path",
            options.val_path, "--out", f"{folder}/val_loss.json",
        )  # fmt: skip
        made = [
            Stage(f"{name}/codes", extract, (f"{name}/tokenizer",)),
            Stage(f"{name}/gpt", tuple(words), (f"{name}/codes",)),
            Stage(f"{name}/val_loss", loss, (f"{name}/gpt",)),
        ]
    own = options.folder(variant, seed)
    draw = [
        "studies.drawings", "--gpt-ckpt", f"{folder}/gpt", "--vq-ckpt", f"{own}/tokenizer", "--train-path",
        options.train_path, "--val-path", options.val_path, "--out", f"{own}/samples", "--cfg-scale",
        str(options.cfg_scale), "--every", str(options.every), "--num-tokens", str(full), "--lengths",
        _listed(lengths(options, variant)[:-1]),
    ]  # fmt: skip
    if options.num_images:
        draw += ["--num-images", str(options.num_images)]
    needs = {f"{name}/gpt", f"{variant}/seed-{seed}/tokenizer"}
    return [*made, Stage(f"{variant}/seed-{seed}/samples", tuple(draw), tuple(sorted(needs)))]


def _listed(counts: list[int]) -> str:
    return f"[{','.join(map(str, counts))}]"
