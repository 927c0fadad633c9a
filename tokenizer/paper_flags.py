"""Names of the papers' projects: flags of their trainers, state-dict keys of released tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from common.config import Alias
from common.paper_flags import estimate, half, only, optional, sharded, switch

Value = TypeVar("Value")

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

STATE_DICT_PREFIXES = {  # encoder part name: (released prefix, our prefix)
    "hybrid_1d": [
        ("encoder.", "encoder.cnn."),
        ("s2to1encoder.", "encoder.transformer."),
        ("s1to2decoder.", "decoder.transformer."),
        ("decoder.", "decoder.cnn."),
        ("quantize.", "quantizer."),
    ],
    "hybrid_2d": [
        ("encoder.", "encoder.cnn."),
        ("s2dencoder.", "encoder.transformer."),
        ("s2ddecoder.", "decoder.transformer."),
        ("decoder.", "decoder.cnn."),
        ("quantize.", "quantizer."),
    ],
    "cnn": [("quantize.", "quantizer.")],
    "dino_vit": [
        ("encoder.model.", "encoder.vit."),
        ("encoder.lvl1LC", "encoder.levels"),
        ("encoder.lvl_embed.", "encoder.level_embedding."),
        ("decoder.model.", "decoder.vit."),
        ("decoder.lvl1LC", "decoder.levels"),
        ("decoder.lvl_embed.", "decoder.level_embedding."),
        ("decoder.to_pixel.model.", "decoder.to_pixel."),
        ("quantize.ema_vocab_hit_SV", "quantizer.hits"),
        ("quantize.", "quantizer."),
        ("semantic_model.", "teacher.net."),
    ],
}


def from_released(tensors: Mapping[str, Value], encoder: str) -> dict[str, Value]:
    """A released state dict under our keys; `encoder` is the name of the encoder part."""
    return {_swap(key, STATE_DICT_PREFIXES[encoder]): value for key, value in tensors.items()}


def to_released(tensors: Mapping[str, Value], encoder: str) -> dict[str, Value]:
    """Inverse of `from_released`."""
    swapped = [(ours, theirs) for theirs, ours in STATE_DICT_PREFIXES[encoder]]
    return {_swap(key, swapped): value for key, value in tensors.items()}


def _swap(key: str, prefixes: list[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if key.startswith(old):
            return new + key[len(old) :]
    return key
