"""Parameter groups, learning-rate schedules, weight averages."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.settings import OptimConfig


def rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of 0-based `step` out of `steps`.

    Source: GigaTok's trainers (cosine_v2, wsd with "sqrt" cool-down), evaluated before the update instead of after.
    """
    if step < config.warmup:
        done = step / config.warmup
        return config.lr * (done + (1 - done) / 100)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        if step >= steps:
            return config.end_lr
        done = (step - config.warmup) / max(1, steps - config.warmup)
        return config.end_lr + 0.5 * (config.lr - config.end_lr) * (1 + math.cos(math.pi * done))
    if config.schedule == "wsd":
        cooldown = int(config.cooldown_fraction * steps)
        held = steps - cooldown
        return config.lr if step < held else config.lr * (1 - math.sqrt((step - held) / max(1, cooldown)))
    raise UserError(f"optim.schedule got {config.schedule!r}; expected constant, cosine or wsd")


def adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors only with `decay_vectors`."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.dim() >= 2 or config.decay_vectors]
    plain = [p for p in trainable if not (p.dim() >= 2 or config.decay_vectors)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=trainable[0].device.type in ("cpu", "cuda"),
    )


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


class Ema:
    """Exponential moving average of a module's parameters; buffers are copied.

    The decay is min(decay, (1+n)/(10+n)) at update n, so that short runs have a usable average, too.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.module = deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged, current = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(averaged, [p.detach() for p in current], 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()
