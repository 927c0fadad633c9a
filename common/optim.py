"""Parameter groups, learning-rate schedules, weight averages."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from common import dist, parallel
from common.dist import World
from common.errors import UserError
from common.options import OptimConfig, RunConfig


def rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of 0-based `step` out of `steps`.

    Source: GigaTok's trainers (cosine_v2, wsd), evaluated before the update instead of after; RAR's (cosine with
    warmup_lr=0); timm's cosine as RobusTok steps it, once per epoch (cosine_epochs).
    """
    if config.schedule not in ("constant", "cosine", "cosine_epochs", "wsd"):
        raise UserError(f"optim.schedule got {config.schedule!r}; expected constant, cosine, cosine_epochs or wsd")
    by_epoch = config.schedule == "cosine_epochs"
    step = min(step, steps) - (step % config.epoch_steps if by_epoch else 0)
    if step < config.warmup:
        first = config.lr / 100 if config.warmup_lr is None else config.warmup_lr
        return first + (config.lr - first) * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        cooldown = int(config.cooldown_fraction * steps)
        done = max(0, step - (steps - cooldown)) / max(1, cooldown)
        left = _left(config.cooldown_shape, done)
    else:
        # timm's cosine runs from the first epoch on; the warm-up only covers its beginning.
        held = 0 if by_epoch else config.warmup
        left = 0.5 * (1 + math.cos(math.pi * (step - held) / max(1, steps - held)))
    return config.end_lr + (config.lr - config.end_lr) * left


def _left(shape: str, done: float) -> float:
    """What a cool-down has left of its height after the share `done`."""
    shapes = {
        "sqrt": lambda: 1 - math.sqrt(done), "linear": lambda: 1 - done, "square": lambda: 1 - done**2,
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * done)),
    }  # fmt: skip
    if shape in shapes:
        return shapes[shape]()
    try:
        return (1 - done) ** float(shape)
    except ValueError:
        known = f"{', '.join(shapes)} or a number"
        raise UserError(f"optim.cooldown_shape got {shape!r}; expected {known}") from None


def adamw(module: nn.Module, config: OptimConfig, without: Container[nn.Parameter] = ()) -> torch.optim.AdamW:
    """AdamW over the trainable parameters but those `without`; matrices decay, vectors only with `decay_vectors`.

    With `fan_in`, a weight with more inputs than that has its group's `lr_scale` = fan_in / inputs: an Adam step moves
    an output by about lr * inputs, so with one rate for all the widest convolution decides how large it may be.
    Source: Yang et al. 2022 (muP), Table 3, hidden weights under Adam.
    """
    trainable = [p for p in module.parameters() if p.requires_grad and p not in without]
    fused = trainable[0].device.type in ("cpu", "cuda")
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for p in trainable:
        matrix = p.dim() >= 2
        scale = min(1.0, config.fan_in * p.shape[0] / p.numel()) if config.fan_in and matrix else 1.0
        groups.setdefault((not (matrix or config.decay_vectors), scale), []).append(p)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "weight_decay": 0.0 if plain else config.weight_decay, "lr_scale": scale}
            for (plain, scale), members in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=fused,
    )
    # There from the start, so that a sharded checkpoint finds tensors to read into.
    for p in trainable:
        count = torch.zeros((), device=p.device if fused else "cpu")
        optimizer.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


class MuonAdamW:
    """Muon for the matrices in stacks of blocks (`nn.ModuleList`), `adamw` for everything else, as one optimizer.

    Muon moves a matrix by its momentum with all singular values made about equal. Both halves follow the config's
    schedule, Muon's at `muon_lr` / `lr` times its height, and share its weight decay.
    Source: Jordan et al. 2024, in torch's implementation, which wants whole matrices: no FSDP.

    Raises: UserError where nothing in the module is such a matrix.
    """

    defaults: Mapping[str, Any] = {}
    """Not fused: `update` looks at the gradients' norm before it lets this step."""

    def __init__(self, module: nn.Module, config: OptimConfig, muon_lr: float):
        stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        matrices = {p: None for stack in stacks for p in stack.parameters() if p.dim() == 2 and p.requires_grad}
        if not matrices:
            raise UserError("optim.muon_lr finds no matrices in a stack of blocks; set optim.muon_lr=null")
        self.others = adamw(module, config, without=matrices)
        group = {"params": list(matrices), "lr_scale": muon_lr / config.lr}
        self.muon = torch.optim.Muon([group], lr=muon_lr, weight_decay=config.weight_decay)
        for p in matrices:  # there from the start, as adamw's
            self.muon.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups + self.others.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.others.zero_grad(set_to_none)

    def step(self) -> None:
        self.muon.step()
        self.others.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "others": self.others.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.others.load_state_dict(state["others"])


def update(
    optimizer: torch.optim.Optimizer | MuonAdamW, config: OptimConfig, step: int, steps: int, loss: Tensor
) -> tuple[Tensor, Tensor]:
    """Clip the gradients and take 0-based `step` of `steps`, unless something is not finite.

    Returns the gradients' norm before clipping, and 1.0 where the update was left out because `loss` or that norm was
    not finite on some rank, else 0.0. Weights, moments and step counts are then as they were. Both stay on the device:
    fused optimizers read the flag in their kernels, so nothing waits for it here.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = parallel.clip_gradients(parameters, config.max_grad_norm)
    finite = torch.isfinite(norm) & torch.isfinite(loss.detach()).all()
    not_finite = dist.largest(1.0 - finite.float())
    for group in optimizer.param_groups:
        group["lr"] = rate(config, step, steps) * group.get("lr_scale", 1.0)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = not_finite  # what torch's GradScaler sets
        optimizer.step()
    elif norm.is_meta or not not_finite.item():
        optimizer.step()
    return norm, not_finite


class Ema:
    """Exponential moving average of a module's parameters; buffers are copied.

    The decay is min(decay, (1+n)/(10+n)) at update n, so that short runs have a usable average, too.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.module = deepcopy(module).eval().requires_grad_(False)

    def place(self, config: RunConfig, world: World) -> None:
        """Put the average where the model's parameters are: on the device, sharded like them."""
        if config.parallel == "fsdp":
            parallel.shard(self.module, config.precision, world)
        else:
            self.module.to(world.device)

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
