"""Options that several jobs share."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import MISSING, opt

PRECISIONS = ("none", "bf16")
WEIGHTS = ("model", "ema")
CROPS = ("random", "center")
BAD_IMAGES = ("stop", "skip")
SCHEDULES = ("constant", "cosine", "cosine_epochs", "wsd")
"""The values of options that several jobs have."""

IMAGE_SIZE = "must be the tokenizer's, but released convolutional files take multiples of their stride; null = its own"
DEVICE_HELP = "auto (the GPU if there is one), cpu, cuda or cuda:N"
CROP_HELP = "random: the short side is resized to [size, size/0.8], then a random square is cut out"
BAD_IMAGES_HELP = "an unreadable image stops the run, or is skipped: the next image takes its place"
SCHEDULE_HELP = "cosine_epochs is a step function per epoch; wsd holds the rate and then cools down"


@dataclass
class RunConfig:
    """Duration, output folder, device and intervals of a run."""

    out: str = opt(MISSING, "result folder; the same command again resumes from it")
    steps: int = opt(MISSING, "total optimizer steps; schedules refer to it", low=1)
    stop_at: int | None = opt(
        None, "stop (with a checkpoint) after this step; schedules still refer to run.steps", low=1
    )
    resume_from: str | None = opt(None, "checkpoint of another run to continue from, e.g. for a cool-down")
    seed: int = opt(0, "seed of weights, data order and all randomness of a step")
    device: str = opt("auto", DEVICE_HELP)
    precision: str = opt(
        "bf16", "none = fp32, bf16 = autocast, also of networks in losses; quantizers and distances compute in fp32",
        PRECISIONS,
    )  # fmt: skip
    parallel: str = opt(
        "ddp", "none = one process, ddp = one copy per process, fsdp = sharded", ("none", "ddp", "fsdp")
    )
    accumulate: int = opt(1, "micro-batches per step; contrastive, entropy, adaptive-weight terms act on each", low=1)
    recompute: bool = opt(False, "activation checkpointing of the blocks")
    compile: bool | None = opt(None, "torch.compile the blocks; null = on a GPU")
    checkpoint_every: int = opt(5000, "steps between checkpoints; the last step always gets one", low=1)
    keep_last: int = opt(3, "newest checkpoints kept", low=1)
    milestone_every: int = opt(50000, "checkpoints at multiples of this are never deleted; 0 = none", low=0)
    background_save: bool = opt(False, "write checkpoints in a thread; needs a copy of them in host memory")
    validate_every: int = opt(0, "steps between validations; 0 = never", low=0)
    skip_limit: int = opt(0, "steps in a row whose loss or gradient may be non-finite before the run stops", low=0)


@dataclass
class DataConfig:
    """An image folder for training, alone or with codes that a generator made for its images."""

    root: str = opt(MISSING, "images: a folder (<root>/<class>/*.png), or tar, zip or parquet files")
    pairs: str | None = opt(None, "pair set of autoregressive.make_pairs: its codes are decoded, root has the targets")
    batch_size: int = opt(256, "global batch size, over all processes", low=1)
    crop: str = opt("random", CROP_HELP, CROPS)
    flip: bool = opt(True, "mirror half of the images")
    bad_images: str = opt("stop", BAD_IMAGES_HELP, BAD_IMAGES)
    workers: int = opt(0, "loader processes per rank; 0 = load in the training process", low=0)


@dataclass
class OptimConfig:
    """AdamW with a learning-rate schedule."""

    lr: float = opt(1e-4, "peak learning rate", low=0)
    beta1: float = opt(0.9, "AdamW beta1", low=0, high=1)
    beta2: float = opt(0.95, "AdamW beta2", low=0, high=1)
    weight_decay: float = opt(1e-4, "decoupled weight decay", low=0)
    decay_vectors: bool = opt(False, "also decay biases and norms, as the papers' tokenizer trainer does")
    max_grad_norm: float = opt(1.0, "maximum gradient norm; 0 = no clipping", low=0)
    schedule: str = opt("cosine", SCHEDULE_HELP, SCHEDULES)
    warmup: int = opt(0, "steps of linear warm-up", low=0)
    warmup_lr: float | None = opt(None, "learning rate at the start of the warm-up; null = lr/100", low=0)
    end_lr: float = opt(0.0, "final learning rate of cosine and wsd", low=0)
    cooldown_fraction: float = opt(0.2, "fraction of the steps in which wsd cools down", low=0, high=1)
    cooldown_shape: str = opt("sqrt", "sqrt | linear | cosine | square | an exponent of the remaining fraction")
    epoch_steps: int = opt(1, "steps per epoch, for cosine_epochs", low=1)


@dataclass
class EstimateConfig:
    """Hardware for which the cost of a step is estimated."""

    ranks: int = opt(1, "number of processes", low=1)
    tflops: float = opt(300.0, "sustained throughput of one process, 1e12 FLOP/s; 300 is typical of an H100 in bf16")


@dataclass
class LogConfig:
    """Trackers besides metrics.jsonl. None asks for a login."""

    every: int = opt(100, "steps between logged lines", low=1)
    wandb: str | None = opt(None, "Weights & Biases project; offline unless a key is configured; null = off")
    tensorboard: bool = opt(False, "write TensorBoard events into <out>/tensorboard")
