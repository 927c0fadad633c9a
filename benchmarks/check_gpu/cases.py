"""Small trainings that together contain the quantizers, losses, discriminators and regularizers, on random data.

Left out: the DINO discriminator, which needs a file, and nested dropout, which only shortens a step.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from common import config
from common.dist import World
from common.trainee import Trainee

__all__ = ["CASES", "trainee_and_batch"]

ROOT = Path(__file__).parents[2]
RUN = ["run.out=none", "run.steps=10", "data.batch_size=8"]
TOKENIZER = [
    "--config", str(ROOT / "configs/toy/robustok.yaml"), "data.root=none", *RUN, "adversary.start=0",
]  # fmt: skip
HYBRID = [
    "--config", str(ROOT / "configs/vq/VQ_SS256_retok.yaml"), "data.root=none", *RUN, "model.image_size=64",
    "model.layout={num_tokens: 16, redundant: 14}", "model.z_channels=64",
    *(f"model.{side}.cnn={{channels: 32, multipliers: [1, 1, 1, 2, 2]}}" for side in ("encoder", "decoder")),
    *(f"model.{side}.transformer={{size: null, width: 64, layers: 3, heads: 2}}" for side in ("encoder", "decoder")),
    "losses.perceptual={name: efficientnet_lite0}",
    "regularizers.semantic.teacher={name: efficientnet_lite0}", "model.decoder.semantic_head.width=112",
    "regularizers.nested_dropout.min_tokens=1", "adversary.start=0", "adversary.adaptive=true",
]  # fmt: skip
GENERATOR = [
    *RUN, "model.size=tiny", "model.codebook_size=64", "model.num_tokens=16", "model.num_classes=4", "input_noise=0.1",
]  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "robustok": ("tokenizer", TOKENIZER),
    "retok": ("tokenizer", [*HYBRID, "model.quantizer.codebook_size=256", "model.quantizer.entropy_weight=0.1"]),
    "lfq": ("tokenizer", [*HYBRID, "model.quantizer={name: lfq, entropy_weight: 0.1}"]),
    "fsq": ("tokenizer", [*HYBRID, "model.quantizer={name: fsq}"]),
    "kl": ("tokenizer", [*HYBRID, "model.quantizer={name: kl}"]),
    "stylegan": ("tokenizer", [
        *HYBRID, "adversary.adaptive=false", "adversary.discriminator={name: stylegan, image_size: 64}",
    ]),
    "gpt": ("autoregressive", GENERATOR),
    "rotary": ("autoregressive", [*GENERATOR, "model.positions=rope2d"]),
    "rar": ("autoregressive", [*GENERATOR, "model.name=rar"]),
}
"""Name -> package of the trainer, its command line."""


def trainee_and_batch(name: str, device: torch.device, *words: str) -> tuple[Trainee, dict[str, Tensor]]:
    """The trainer of a case, with random weights from its seed, and a batch of eight."""
    job, own = CASES[name]
    settings = config.parse(importlib.import_module(f"{job}.config").TrainConfig, [*own, "run.compile=false", *words])
    build, batch = importlib.import_module(f"{job}.train").without_data(settings)
    torch.manual_seed(0)
    if device.type == "meta":
        with device:
            return build(World(0, 1, device)), batch(8)
    return build(World(0, 1, device)), {key: value.to(device) for key, value in batch(8).items()}
