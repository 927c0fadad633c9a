"""Small trainings that together contain the quantizers, losses, discriminators and regularizers, on random data.

Left out: LPIPS, ConvNeXt and the DINO discriminator, which need files, and nested dropout, which only shortens a step.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.training import STAND_INS
from common import config
from common.dist import World
from common.trainee import Trainee

__all__ = ["CASES", "trainee_and_batch"]

ROOT = Path(__file__).parents[2]
BATCH = 4
RUN = ["run.out=none", "run.steps=10", f"data.batch_size={BATCH}", "run.compile=false"]
TOKENIZER = [
    "--config", str(ROOT / "configs/toy/robustok.yaml"), "data.root=none", *RUN, "adversary.start=0",
]  # fmt: skip
HYBRID = [
    "--config", str(ROOT / "configs/vq/VQ_SS256_retok.yaml"), "data.root=none", *RUN, "model.image_size=64",
    "model.layout={num_tokens: 16, redundant: 14}", "model.z_channels=64",
    *(f"model.{side}.cnn={{channels: 32, multipliers: [1, 2], patch: 8}}" for side in ("encoder", "decoder")),
    *(f"model.{side}.transformer={{size: null, width: 64, layers: 2, heads: 2}}" for side in ("encoder", "decoder")),
    "losses.perceptual={name: efficientnet_lite0}",
    "regularizers.semantic.teacher={name: efficientnet_lite0}", "model.decoder.semantic_head={width: 112, depth: 1}",
    "regularizers.nested_dropout.min_tokens=1", "adversary.start=0", "adversary.adaptive=true",
]  # fmt: skip
GENERATOR = [
    *RUN, "model.size=tiny", "model.codebook_size=64", "model.num_tokens=16", "model.num_classes=4", "input_noise=0.1",
]  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "robustok": ("tokenizer", TOKENIZER),
    "product": ("tokenizer", [
        *TOKENIZER, "model.encoder.groups=2", "model.quantizer={name: product}", "losses.recon={name: l1}",
        "adversary.discriminator={name: efficientnet_lite0}",
    ]),
    "scales": ("tokenizer", [
        *TOKENIZER, "model.quantizer={name: multi_scale, codebook_size: 64, scales: [1, 2, 4, 8]}",
        "regularizers={perturbation: null, codebook_drop: {min_scales: 1, share: 0.5}}",
    ]),
    "binary_scales": ("tokenizer", [
        *TOKENIZER, "model.quantizer={name: binary_multi_scale, codebook_size: 64, scales: [1, 2, 4, 8]}",
        "regularizers.perturbation=null", "adversary=null",
    ]),
    "retok": ("tokenizer", [*HYBRID, "model.quantizer.codebook_size=256", "model.quantizer.entropy_weight=0.1"]),
    "ibq": ("tokenizer", [
        *HYBRID, "model.quantizer={name: ibq, codebook_size: 256, codebook_dim: 16}",
        "regularizers.cross_length={min_tokens: 1}", "regularizers.self_alignment={}",
    ]),
    "lfq": ("tokenizer", [
        *HYBRID, "model.quantizer={name: lfq, entropy_weight: 0.1}", "regularizers.shortcut={}", "adversary=null",
    ]),
    "fsq": ("tokenizer", [*HYBRID, "model.quantizer={name: fsq}", "adversary=null"]),
    "kl": ("tokenizer", [*HYBRID, "model.quantizer={name: kl}", "adversary=null"]),
    "stylegan": ("tokenizer", [
        *HYBRID, "adversary.adaptive=false",
        "adversary.discriminator={name: stylegan, image_size: 64, widths: [32, 32, 32, 16, 16]}",
    ]),
    "gpt": ("autoregressive", GENERATOR),
    "rotary": ("autoregressive", [*GENERATOR, "model.positions=rope2d"]),
    "rar": ("autoregressive", [*GENERATOR, "model.name=rar"]),
}
"""Name -> package of the trainer, its command line."""
FULL_WIDTH: dict[str, tuple[str, list[str]]] = {
    "S-S": ("tokenizer", ["--config", str(ROOT / "configs/vq/VQ_SS256.yaml"), *STAND_INS, *RUN]),
}
"""Released sizes, which only a GPU runs."""


def trainee_and_batch(name: str, device: torch.device, *words: str) -> tuple[Trainee, dict[str, Tensor]]:
    """The trainer of a case, with random weights from its seed, and a batch of four."""
    job, own = (CASES | FULL_WIDTH)[name]
    settings = config.parse(importlib.import_module(f"{job}.config").TrainConfig, [*own, *words])
    build, batch = importlib.import_module(f"{job}.train").without_data(settings)
    torch.manual_seed(0)
    if device.type == "meta":
        with device:
            return build(World(0, 1, device)), batch(BATCH)
    return build(World(0, 1, device)), {key: value.to(device) for key, value in batch(BATCH).items()}
