"""Flags of the papers' tokenizer trainers, as entries of our configs. Does not import torch."""

from __future__ import annotations

from common.config import Alias
from common.paper_flags import estimate, half, only, optional, sharded, switch

__all__ = ["TRAIN_FLAGS"]

TRAIN_FLAGS: dict[str, Alias] = {  # flags of the papers' vq_train.py: our key
    "data-path": "data.root",
    "global-batch-size": "data.batch_size",
    "num-workers": "data.workers",
    "image-size": "model.image_size",
    "save-path": "run.out",
    "out": "run.out",
    "iterations": "run.steps",
    "iteration": "run.steps",
    "early-stop-iter": optional("run.stop_at"),
    "global-seed": "run.seed",
    "device": "run.device",
    "mixed-precision": half("run.precision"),
    "ckpt-every": "run.checkpoint_every",
    "milestone-step": "run.milestone_every",
    "lr": "optim.lr",
    "warmup": "optim.warmup",
    "fract-decay": "optim.cooldown_fraction",
    "vq-ckpt": "init",
    "finetune": switch(),  # starting from weights is always the beginning of a new run
    "dataset": only("dataset", "imagenet"),
    "ema": switch("ema_decay=0.9999"),
    "no-wandb": switch("log.wandb=null"),
    "data-parallel": sharded,
    "log-every": "log.every",
    "estimate": estimate("data.root=unused"),
    "wandb-project": "log.wandb",
}
