"""Training throughput: images per second and model FLOPs utilisation (MFU) of whole steps, in float32 and bf16.

Steps run on random images or codes, so that no data is needed. Embedded networks stand in for the papers' frozen ones.
A step's FLOPs are counted (common/estimate.py). MFU is FLOPs per second as a share of what one large matrix product
reaches on the same device in the same precision.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import DTYPES, Work, compare
from common import config
from common.dist import World
from common.estimate import measure
from common.log import peak_memory_gb
from common.options import EstimateConfig

__all__ = ["STAND_INS", "training"]

ROOT = Path(__file__).parents[1]

STAND_INS = [
    "losses.perceptual.name=efficientnet_lite0", "regularizers.semantic.teacher.name=efficientnet_lite0",
    "model.decoder.semantic_head.width=112", "data.root=none",
]  # fmt: skip
CASES: dict[str, dict[str, tuple[str, int, list[str]]]] = {
    "cpu": {
        "quickstart tokenizer": ("configs/quickstart/tokenizer.yaml", 32, []),
        "quickstart GPT": ("configs/quickstart/gpt.yaml", 64, []),
        "tokenizer S-S": ("configs/vq/VQ_SS256.yaml", 2, STAND_INS),
        "GPT-B": ("configs/gpt/GPT-B.yaml", 4, []),
    },
    "cuda": {
        "tokenizer S-S": ("configs/vq/VQ_SS256.yaml", 32, STAND_INS),
        "tokenizer S-S, compiled": ("configs/vq/VQ_SS256.yaml", 32, [*STAND_INS, "run.compile=true"]),
        "tokenizer B-L": ("configs/vq/VQ_BL256.yaml", 32, STAND_INS),
        "GPT-B": ("configs/gpt/GPT-B.yaml", 128, []),
        "GPT-B, compiled": ("configs/gpt/GPT-B.yaml", 128, ["run.compile=true"]),
        "GPT-L": ("configs/gpt/GPT-L.yaml", 64, []),
        "GPT-XL": ("configs/gpt/GPT-XL.yaml", 64, ["run.recompute=true"]),
    },
}
"""Device -> case -> config, images per step, further words of the command line."""


def training(device: torch.device, cases: list[str] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Images per second of the device's cases, all of them or those named."""
    return {
        f"{case}, {precision}": _steps(device, case, precision, repeats)
        for case in cases or CASES[device.type] for precision in DTYPES
    }  # fmt: skip


def _steps(device: torch.device, case: str, precision: str, repeats: int) -> dict[str, Any]:
    path, count, own = CASES[device.type][case]
    words = [f"data.batch_size={count}", f"run.device={device.type}", f"run.precision={precision}"]
    job = "autoregressive" if "gpt" in path else "tokenizer"
    schema = importlib.import_module(f"{job}.config").TrainConfig
    settings = config.parse(schema, ["--config", str(ROOT / path), *own, *words])
    build, batch = importlib.import_module(f"{job}.train").without_data(settings)
    cost = measure(build, batch, count, settings.run, EstimateConfig())
    trainee = build(World(0, 1, device))
    images = {key: value.to(device) for key, value in batch(count).items()}
    last = settings.run.steps - 1  # every loss is active then
    found = compare(
        {"ours": lambda: trainee.step(images, last)}, count, device, repeats=repeats, warm_up=3, work=Work(cost.flops),
        precision=precision,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_memory_gb()
    return found | {
        "images_per_step": count, "parameters": cost.parameters, "gflop_per_image": cost.flops / count / 1e9,
        "mfu": found["roofline_share"], "peak_memory_gb": peak, "estimated_memory_gb": cost.memory_bytes / 1e9,
    }  # fmt: skip
