"""Training steps of the shipped configs, beside the same steps in float32 with an optimizer that walks its tensors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.timing import Work, compare
from benchmarks.training import CASES, prepare
from common.dist import World
from common.estimate import measure
from common.loop import Trainee
from common.options import EstimateConfig

__all__ = ["gpt_training", "tokenizer_training"]


def tokenizer_training(device: torch.device) -> dict[str, Any]:
    """Tokenizer S-S at 256 pixels: all losses and the discriminator."""
    return _steps("tokenizer S-S", device)


def gpt_training(device: torch.device) -> dict[str, Any]:
    """GPT-B on 256 codes an image."""
    return _steps("GPT-B", device)


def _steps(case: str, device: torch.device) -> dict[str, Any]:
    count = CASES[device.type][case][1]
    (ours, images, flops), (plain, _, _) = (_trainee(case, device, precision) for precision in ("bf16", "none"))
    for optimizer in (plain.optimizer, *([plain.adversary.optimizer] if getattr(plain, "adversary", None) else [])):
        for options in (optimizer.defaults, *optimizer.param_groups):
            options |= {"fused": False, "foreach": False}
    last = 10**9  # the discriminator is in it from some step on
    return {
        f"{case}, {count} images a step": compare(
            partial(plain.step, images, last), partial(ours.step, images, last), count, device, work=Work(flops)
        )
    }


def _trainee(case: str, device: torch.device, precision: str) -> tuple[Trainee, dict[str, torch.Tensor], float]:
    settings, build, batch = prepare(case, device, [f"run.precision={precision}"])
    count = settings.data.batch_size
    flops = measure(build, batch, count, settings.run, EstimateConfig()).flops
    images = {key: value.to(device) for key, value in batch(count).items()}
    return build(World(0, 1, device)), images, flops
