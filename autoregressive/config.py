"""The options of the generator's jobs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from autoregressive.guidance import Guidance
from common.config import MISSING, opt, part
from common.options import (
    BAD_IMAGES,
    BAD_IMAGES_HELP,
    CROP_HELP,
    CROPS,
    DEVICE_HELP,
    IMAGE_SIZE,
    PRECISIONS,
    SCHEDULE_HELP,
    SCHEDULES,
    WEIGHTS,
    EstimateConfig,
    LogConfig,
    OptimConfig,
    RunConfig,
)

__all__ = [
    "DrawConfig",
    "ExtractConfig",
    "GeneratorDataConfig",
    "GeneratorOptimConfig",
    "PairsConfig",
    "SampleConfig",
    "Sampling",
    "TrainConfig",
    "for_device",
]


@dataclass
class ExtractConfig:
    """Everything `python -m autoregressive.extract_codes` reads."""

    code_path: str = opt(MISSING, "folder of the code store to write")
    data_path: str | None = opt(None, "image folder to tokenize: <data_path>/<class>/*.png")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run")
    weights: str = opt("ema", "tokenizer weights", WEIGHTS)
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, IMAGE_SIZE)
    ten_crop: bool = opt(False, "ten crops (corners, centre, each mirrored) instead of two (centre, mirrored)")
    crop_ranges: list[float] = opt(
        [1.1], "with ten_crop: the short side is first resized to image_size times this; one set of crops each", low=1
    )
    from_npy: str | None = opt(None, "instead of images: a folder with the papers' *_codes/0.npy and *_labels/0.npy")
    codebook_size: int | None = opt(None, "with from_npy: number of different codes", low=1)
    precision: str = opt("none", "bf16 is faster, but may choose another of two close codes", PRECISIONS)
    batch_size: int = opt(32, "crops encoded at once, per process", low=1)
    workers: int = opt(0, "loader processes per rank; 0 = load in this process", low=0)
    chunk: int = opt(1024, "images per intermediate file; an interrupted job resumes after the last one", low=1)
    device: str = opt("auto", DEVICE_HELP)


@dataclass
class GeneratorDataConfig:
    """Codes to learn from: a code store, or images tokenized on the fly."""

    codes: str | None = opt(None, "code store from autoregressive.extract_codes, or a released .jsonl of tokens")
    root: str | None = opt(None, "image folder, instead of codes; vq_ckpt tokenizes it in every step")
    vq_ckpt: str | None = opt(None, "with root: tokenizer checkpoint or run")
    weights: str = opt("ema", "with root: tokenizer weights", WEIGHTS)
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, IMAGE_SIZE)
    crop: str = opt("random", f"with root: {CROP_HELP}", CROPS)
    flip: bool = opt(True, "with root: mirror half of the images")
    val_codes: str | None = opt(None, "held-out code store for run.validate_every")
    batch_size: int = opt(256, "global batch size, over all processes", low=1)
    bad_images: str = opt("stop", f"with root: {BAD_IMAGES_HELP}", BAD_IMAGES)
    workers: int = opt(0, "loader processes per rank; 0 = load in the training process", low=0)


@dataclass
class GeneratorOptimConfig(OptimConfig):
    """The shared optimizer options with the papers' defaults for generators."""

    weight_decay: float = opt(0.05, "decoupled weight decay of matrices", low=0)
    schedule: str = opt("wsd", SCHEDULE_HELP, SCHEDULES)
    muon_lr: float | None = opt(
        None, "train the matrices of the blocks with Muon at this peak rate, e.g. 0.02; null = AdamW for all", low=0
    )


@dataclass
class RegressionConfig:
    """Two blocks of the generator also predict code vectors of the tokenizer (autoregressive/regression.py)."""

    weight: float = opt(1.0, "weight of both losses", low=0)
    current_layer: int = opt(1, "block (1-based) that predicts the vector of the code it reads", low=1)
    next_layer: int | None = opt(
        None, "block (1-based) that predicts the vector of the next code; null = the last", low=1
    )


@dataclass
class TrainConfig:
    """Everything `python -m autoregressive.train` reads."""

    model: dict[str, Any] = part("autoregressive.models:GENERATORS", "the generator", {"name": "gpt"})
    data: GeneratorDataConfig = field(default_factory=GeneratorDataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    optim: GeneratorOptimConfig = field(default_factory=GeneratorOptimConfig)
    input_noise: float = opt(
        0.0, "probability that an input code is replaced by a random one; targets stay", low=0, high=1
    )
    regression: RegressionConfig | None = opt(None, "predict code vectors, too; {} = defaults; needs data.vq_ckpt")
    ema_decay: float = opt(0.0, "decay of the average of the weights; 0 = no average", low=0, high=1)
    log: LogConfig = field(default_factory=LogConfig)
    estimate: EstimateConfig | None = opt(None, "print the cost of a step and stop: --estimate RANKS")


@dataclass
class Sampling:
    """Sampling of a code from its logits."""

    temperature: float = opt(1.0, "divisor of the logits", low=0)
    top_k: int = opt(0, "keep the k most likely codes; 0 = all", low=0)
    top_p: float = opt(1.0, "keep the most likely codes up to this probability; 1 = all", low=0, high=1)
    greedy: bool = opt(False, "take the most likely code instead of sampling")


@dataclass
class DrawConfig:
    """Generator, tokenizer and sampling options that every sampling job has."""

    gpt_ckpt: str = opt(MISSING, "generator checkpoint or run")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run that decodes the codes")
    gpt_weights: str = opt("model", "generator weights", WEIGHTS)
    vq_weights: str = opt("ema", "tokenizer weights", WEIGHTS)
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    generator: dict[str, Any] = opt({}, "options of the generator; must agree with the checkpoint")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, IMAGE_SIZE)
    guidance: Guidance = field(default_factory=Guidance)
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = opt(0, "image i depends only on the seed and on i")
    precision: str | None = opt(None, "generator: none = fp32; null = bf16 on a GPU, else none", PRECISIONS)
    vq_precision: str | None = opt(None, "tokenizer: none = fp32; null = bf16 on a GPU, else none", PRECISIONS)
    compile: bool | None = opt(
        None, "torch.compile both models; on a GPU with one CUDA graph per batch; null = on a GPU"
    )
    batch_size: int | None = opt(
        None, "images per batch and process; null = 32, on a GPU up to 256 as its memory allows", low=1
    )
    device: str = opt("auto", DEVICE_HELP)


Draw = TypeVar("Draw", bound=DrawConfig)


def for_device(config: Draw, device: torch.device) -> Draw:
    """The config with the device's defaults where precision, vq_precision and compile are null."""
    on_gpu = device.type == "cuda"
    defaults = {"precision": "bf16" if on_gpu else "none", "vq_precision": "bf16" if on_gpu else "none"}
    defaults["compile"] = on_gpu
    unset = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **unset)


@dataclass
class SampleConfig(DrawConfig):
    """Everything `python -m autoregressive.sample` reads."""

    sample_dir: str = opt(MISSING, "folder for PNGs and labels; <sample_dir>.npz is written beside it")
    num_images: int = opt(50000, "total number of images", low=1)
    classes: list[int] | None = opt(None, "only these classes, one folder each; null = all", low=0)
    labels: str = opt(
        "balanced", "balanced: classes in turn; uniform: at random for each image", ("balanced", "uniform")
    )
    num_tokens: int | None = opt(None, "codes per image, at most the generator's; null = all", low=1)
    png: bool = opt(True, "write PNGs, from which an interrupted job resumes; false = only the .npz")


@dataclass
class PairsConfig(DrawConfig):
    """Everything `python -m autoregressive.make_pairs` reads."""

    out: str = opt(MISSING, "folder of the pair set to write")
    data_path: str = opt(MISSING, "real images: <data_path>/<class>/*.png, of the generator's classes")
    num_samples: int | None = opt(None, "images taken from the folder; null or negative = all")
    sigma: float = opt(
        0.7, "fraction of an image's codes that is kept: 1 = reconstruction, 0 = free sample", low=0, high=1
    )
    keep: str = opt(
        "bernoulli", "codes that are kept: bernoulli = each with probability sigma, prefix = the first, schedule = the "
        "first more likely", ("bernoulli", "prefix", "schedule"),
    )  # fmt: skip
    batch_size: int = opt(32, "images per batch and process; the pairs depend on it in their last bits", low=1)
    shard: int = opt(1024, "samples per intermediate file; an interrupted job resumes after the last one", low=1)
    workers: int = opt(0, "loader processes per rank; 0 = load in this process", low=0)
