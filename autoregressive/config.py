"""The options of the generator's jobs. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autoregressive.guidance import Guidance
from common.config import MISSING, opt, part
from common.options import SCHEDULES, EstimateConfig, LogConfig, OptimConfig, RunConfig

__all__ = [
    "DrawConfig",
    "ExtractConfig",
    "GeneratorDataConfig",
    "GeneratorOptimConfig",
    "PairsConfig",
    "SampleConfig",
    "Sampling",
    "TrainConfig",
]


@dataclass
class ExtractConfig:
    """Everything `python -m autoregressive.extract_codes` reads."""

    code_path: str = opt(MISSING, "the code store to write (a folder)")
    data_path: str | None = opt(None, "image folder to tokenize: <data_path>/<class>/*.png")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run")
    weights: str = opt("ema", "tokenizer weights: ema | model")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, "must be the tokenizer's; null = take it from there")
    ten_crop: bool = opt(False, "corner and centre crops and their mirror images; else centre + mirror image")
    crop_ranges: list[float] = opt([1.1], "ten_crop: the image is first cut to image_size x this; several add up")
    from_npy: str | None = opt(None, "instead of images: a folder with the papers' *_codes/0.npy and *_labels/0.npy")
    codebook_size: int | None = opt(None, "from_npy only: number of different codes")
    precision: str = opt("none", "none (fp32) | bf16: much faster, now and then another of two near codes")
    batch_size: int = opt(32, "crops encoded at once, per process")
    workers: int = opt(0, "loader processes per rank; 0 = in this process")
    chunk: int = opt(1024, "images between two files an interrupted job resumes from")
    device: str = opt("auto", "auto | cpu | cuda")


@dataclass
class GeneratorDataConfig:
    """Codes to learn from: a code store, or images tokenized on the fly."""

    codes: str | None = opt(None, "code store from autoregressive.extract_codes, or a released .jsonl of tokens")
    root: str | None = opt(None, "instead: image folder, tokenized in every step by vq_ckpt")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run, for root")
    weights: str = opt("ema", "tokenizer weights for root: ema | model")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, "must be the tokenizer's; null = take it from there")
    crop: str = opt("random", "for root: random (short side in [size, size/0.8], random square) | center")
    flip: bool = opt(True, "for root: mirror half of the images")
    val_codes: str | None = opt(None, "held-out code store for run.validate_every")
    batch_size: int = opt(256, "global batch size, over all ranks")
    bad_images: str = opt("stop", "for root: stop | skip (the next readable image takes an unreadable one's place)")
    workers: int = opt(0, "loader processes per rank; 0 = in the training process")


@dataclass
class GeneratorOptimConfig(OptimConfig):
    """The shared optimizer options with the papers' defaults for generators."""

    weight_decay: float = opt(0.05, "decoupled weight decay of matrices")
    schedule: str = opt("wsd", SCHEDULES)
    muon_lr: float | None = opt(None, "Muon at this peak rate (0.02) for the blocks' matrices; null = AdamW for all")


@dataclass
class RegressionConfig:
    """Hidden states that also regress the tokenizer's code vectors (autoregressive/regression.py)."""

    weight: float = opt(1.0, "factor of both losses")
    current_layer: int = opt(1, "block (1-based) whose state regresses the vector of the code fed last")
    next_layer: int | None = opt(None, "block whose state regresses the vector of the next code; null = the last")


@dataclass
class TrainConfig:
    """Everything `python -m autoregressive.train` reads."""

    model: dict[str, Any] = part("autoregressive.models:GENERATORS", "the generator", {"name": "gpt"})
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    optim: GeneratorOptimConfig = field(default_factory=GeneratorOptimConfig)
    input_noise: float = opt(0.0, "probability that an input code is replaced by a random one (targets stay)")
    regression: RegressionConfig | None = opt(None, "embedding regression; {} = its defaults; needs data.vq_ckpt")
    ema_decay: float = opt(0.0, "decay of a weight average kept beside the model; 0 = none")
    log: LogConfig = field(default_factory=LogConfig)
    estimate: EstimateConfig | None = opt(None, "print what a step costs, and stop: --estimate RANKS")


@dataclass
class Sampling:
    """How a code is drawn from its logits."""

    temperature: float = opt(1.0, "logits are divided by this")
    top_k: int = opt(0, "keep the k most likely codes; 0 = all")
    top_p: float = opt(1.0, "keep the most likely codes up to this probability; 1 = all")
    greedy: bool = opt(False, "take the most likely code instead of drawing")


@dataclass
class DrawConfig:
    """A generator, the tokenizer it makes codes for, and how codes are drawn: what every sampling job reads."""

    gpt_ckpt: str = opt(MISSING, "generator checkpoint or run")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run that decodes")
    gpt_weights: str = opt("model", "generator weights: model | ema")
    vq_weights: str = opt("ema", "tokenizer weights: ema | model")
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    generator: dict[str, Any] = opt({}, "parts of the generator's config; must agree with the checkpoint")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, "must be the tokenizer's; null = take it from there")
    guidance: Guidance = field(default_factory=Guidance)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = opt(0, "image i depends on the seed and i alone")
    precision: str = opt("none", "generator: none (fp32) | bf16 | int8, fp8 (weights of eight bits, the rest bf16)")
    vq_precision: str = opt("none", "tokenizer: none (fp32) | bf16")
    compile: bool = opt(False, "torch.compile both models; on a GPU a batch of codes becomes one CUDA graph")
    batch_size: int = opt(32, "images at once, per process")
    device: str = opt("auto", "auto | cpu | cuda")


@dataclass
class SampleConfig(DrawConfig):
    """Everything `python -m autoregressive.sample` reads."""

    sample_dir: str = opt(MISSING, "folder for PNGs and labels; <sample_dir>.npz is written beside it")
    num_images: int = opt(50000, "images in all")
    classes: list[int] | None = opt(None, "only these classes, a folder each; null = all")
    labels: str = opt("balanced", "balanced (classes take turns) | uniform (each image draws its class)")
    num_tokens: int | None = opt(None, "codes per image, at most the generator's; null = all")
    png: bool = opt(True, "write PNGs, from which an interrupted job resumes; false = only the .npz")


@dataclass
class PairsConfig(DrawConfig):
    """Everything `python -m autoregressive.make_pairs` reads."""

    out: str = opt(MISSING, "the pair set to write (a folder)")
    data_path: str = opt(MISSING, "real images: <data_path>/<class>/*.png, of the generator's classes")
    num_samples: int | None = opt(None, "images drawn from the folder; null or negative = all")
    sigma: float = opt(0.7, "share of an image's own codes that is kept: 1 = reconstruction, 0 = free sample")
    keep: str = opt("bernoulli", "which ones: bernoulli (each alike) | prefix | schedule (the first likelier)")
    shard: int = opt(1024, "samples between two files an interrupted job resumes from")
    workers: int = opt(0, "loader processes per rank; 0 = in this process")
