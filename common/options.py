"""Options that several jobs share."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import MISSING, opt


@dataclass
class RunConfig:
    """Duration, output folder, device and intervals of a run."""

    out: str = opt(MISSING, "result folder; the same command again resumes from it")
    steps: int = opt(MISSING, "total optimizer steps; schedules refer to it")
    stop_at: int | None = opt(None, "stop (with a checkpoint) after this step; schedules still refer to run.steps")
    resume_from: str | None = opt(None, "checkpoint of another run to continue from, e.g. for a cool-down")
    seed: int = opt(0, "seed of weights, data order and all randomness of a step")
    device: str = opt("auto", "auto | cpu | cuda")
    precision: str = opt("bf16", "none (fp32) | bf16 autocast; quantizer and losses stay fp32")
    parallel: str = opt("ddp", "none (one process) | ddp (one copy per process) | fsdp (sharded)")
    accumulate: int = opt(1, "micro-batches per step; gradients are reduced once")
    recompute: bool = opt(False, "activation checkpointing of the blocks")
    compile: bool = opt(False, "torch.compile the blocks")
    checkpoint_every: int = opt(5000, "steps between checkpoints; the last step always gets one")
    keep_last: int = opt(3, "newest checkpoints kept")
    milestone_every: int = opt(50000, "checkpoints at multiples of this are never deleted; 0 = none")
    background_save: bool = opt(False, "write checkpoints in a thread; needs a copy of them in host memory")
    validate_every: int = opt(0, "steps between validations; 0 = never")
    skip_limit: int = opt(0, "steps in a row whose loss or gradient may be non-finite before the run stops")


@dataclass
class DataConfig:
    """An image folder for training, alone or with codes that a generator made for its images."""

    root: str = opt(MISSING, "image folder: <root>/<class>/*.png, or images directly under <root>")
    pairs: str | None = opt(None, "pair set of autoregressive.make_pairs: decode its codes, aim at the images in root")
    batch_size: int = opt(256, "global batch size, over all ranks")
    crop: str = opt("random", "random (short side in [size, size/0.8], random square) | center")
    flip: bool = opt(True, "mirror half of the images")
    bad_images: str = opt("stop", "stop | skip: an unreadable image ends the run, or the next takes its place")
    workers: int = opt(0, "loader processes per rank; 0 = in the training process")


SCHEDULES = "constant | cosine | cosine_epochs (a step function) | wsd (hold, then cool down)"


@dataclass
class OptimConfig:
    """AdamW with a learning-rate schedule."""

    lr: float = opt(1e-4, "peak learning rate")
    beta1: float = opt(0.9, "AdamW beta1")
    beta2: float = opt(0.95, "AdamW beta2")
    weight_decay: float = opt(1e-4, "decoupled weight decay")
    decay_vectors: bool = opt(
        False, "also decay biases and norms, as the papers' tokenizer trainer does"
    )
    max_grad_norm: float = opt(1.0, "maximum gradient norm; 0 = no clipping")
    schedule: str = opt("cosine", SCHEDULES)
    warmup: int = opt(0, "steps of linear warm-up")
    warmup_lr: float | None = opt(None, "learning rate at the start of the warm-up; null = lr/100")
    end_lr: float = opt(0.0, "final learning rate of cosine and wsd")
    cooldown_fraction: float = opt(0.2, "fraction of the steps in which wsd cools down")
    cooldown_shape: str = opt("sqrt", "sqrt | linear | cosine | square | an exponent of the remaining fraction")
    epoch_steps: int = opt(1, "steps per epoch, for cosine_epochs")


@dataclass
class EstimateConfig:
    """Hardware for which the cost of a step is estimated."""

    ranks: int = opt(1, "number of processes")
    tflops: float = opt(300.0, "sustained throughput of one process, 1e12 FLOP/s; 300 is typical of an H100 in bf16")


@dataclass
class LogConfig:
    """Trackers besides metrics.jsonl. None asks for a login."""

    every: int = opt(100, "steps between logged lines")
    wandb: str | None = opt(None, "Weights & Biases project; offline unless a key is configured; null = off")
    tensorboard: bool = opt(False, "write TensorBoard events into <out>/tensorboard")
