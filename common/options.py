"""Options that several jobs share. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import MISSING, opt


@dataclass
class RunConfig:
    """How long, where to, how often."""

    out: str = opt(MISSING, "result folder; the same command again resumes from it")
    steps: int = opt(MISSING, "optimizer steps in all; schedules refer to it")
    stop_at: int | None = opt(None, "stop (with a checkpoint) after this step; schedules still refer to run.steps")
    resume_from: str | None = opt(None, "checkpoint of another run that a new run goes on from, e.g. to cool it down")
    seed: int = opt(0, "seed of weights, data order and everything random in a step")
    device: str = opt("auto", "auto | cpu | cuda")
    precision: str = opt("bf16", "none (fp32) | bf16 autocast; quantizer and losses stay fp32")
    parallel: str = opt("ddp", "none | ddp (a copy per process) | fsdp (sharded); one process needs neither")
    accumulate: int = opt(1, "micro-batches per step; gradients are exchanged once")
    recompute: bool = opt(False, "activation checkpointing: keep the inputs of blocks, compute the rest again")
    compile: bool = opt(False, "torch.compile the blocks")
    checkpoint_every: int = opt(5000, "steps between checkpoints; the last step always gets one")
    keep_last: int = opt(3, "newest checkpoints kept")
    milestone_every: int = opt(50000, "checkpoints at multiples of this are kept for good; 0 = none")
    background_save: bool = opt(False, "write checkpoints beside the training; costs a copy of them in host memory")
    validate_every: int = opt(0, "steps between validations; 0 = never")
    not_finite: str = opt("stop", "stop | skip: when a loss or gradient is not finite; the update is left out anyway")
    skip_limit: int = opt(3, "not_finite=skip stops, too, after more than this many skipped steps in a row")


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
    """AdamW with a schedule. Step s of T (0-based) runs at `rate(s)`, warm-up included from the first step."""

    lr: float = opt(1e-4, "peak learning rate")
    beta1: float = opt(0.9, "AdamW beta1")
    beta2: float = opt(0.95, "AdamW beta2")
    weight_decay: float = opt(1e-4, "decoupled weight decay")
    decay_vectors: bool = opt(
        False, "also decay biases and norms (the papers' tokenizer trainer does)"
    )
    max_grad_norm: float = opt(1.0, "gradient norm is clipped to this; 0 = off")
    schedule: str = opt("cosine", SCHEDULES)
    warmup: int = opt(0, "steps of linear warm-up")
    warmup_lr: float | None = opt(None, "where the warm-up starts; null = lr/100")
    end_lr: float = opt(0.0, "where cosine and wsd end")
    cooldown_fraction: float = opt(0.2, "fraction of the steps in which wsd cools down")
    cooldown_shape: str = opt("sqrt", "sqrt | linear | cosine | square | an exponent of the remaining fraction")
    epoch_steps: int = opt(1, "steps per epoch, for cosine_epochs")


@dataclass
class EstimateConfig:
    """For whom a step's cost is estimated."""

    ranks: int = opt(1, "processes that the run would have")
    tflops: float = opt(300.0, "what one of them sustains, 1e12 FLOP/s; 300 is a good H100 in bf16")


@dataclass
class LogConfig:
    """Where figures go besides metrics.jsonl. Nothing here asks for a login."""

    every: int = opt(100, "steps between logged lines")
    wandb: str | None = opt(None, "Weights & Biases project; offline unless a key is configured; null = off")
    tensorboard: bool = opt(False, "write TensorBoard events into <out>/tensorboard")
