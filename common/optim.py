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
    warmup_lr=0); timm's cosine stepped once per epoch, as RobusTok does (cosine_epochs).
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
        left = _remaining(config.cooldown_shape, max(0, step - (steps - cooldown)) / max(1, cooldown))
    else:
        # timm's cosine starts at epoch 0; the warm-up replaces its first part.
        held = 0 if by_epoch else config.warmup
        left = 0.5 * (1 + math.cos(math.pi * (step - held) / max(1, steps - held)))
    return config.end_lr + (config.lr - config.end_lr) * left


def _remaining(shape: str, done: float) -> float:
    """Height of a cool-down after the fraction `done` of it, from 1 to 0."""
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
    """AdamW over the trainable parameters except those in `without`.

    There are always two groups, matrices and vectors, so that changing `decay_vectors` does not change which saved
    moments belong to which parameter.
    """
    trainable = [p for p in module.parameters() if p.requires_grad and p not in without]
    fused = trainable[0].device.type in ("cpu", "cuda")
    decays = {True: config.weight_decay, False: config.weight_decay if config.decay_vectors else 0.0}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trainable if (p.dim() >= 2) == matrices], "weight_decay": decay}
            for matrices, decay in decays.items()
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=fused,
    )
    # The state exists from the start: a sharded checkpoint is read into existing tensors.
    for p in trainable:
        count = torch.zeros((), device=p.device if fused else "cpu")
        optimizer.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


class MuonAdamW:
    """Muon for the matrices in stacks of blocks (`nn.ModuleList`), AdamW for all other parameters, as one optimizer.

    Muon updates a matrix with its momentum, orthogonalised so that all singular values are about equal. Both parts
    follow the config's schedule and weight decay; Muon's rate is `muon_lr / lr` times the scheduled one.
    Source: Jordan et al. 2024, as implemented in torch, which needs whole matrices (no FSDP).

    Raises: UserError when the module has no such matrix.
    """

    defaults: Mapping[str, Any] = {}
    """Not fused: `update` reads the gradient norm on the host before it calls `step`."""

    def __init__(self, module: nn.Module, config: OptimConfig, muon_lr: float):
        stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        matrices = {p: None for stack in stacks for p in stack.parameters() if p.dim() == 2 and p.requires_grad}
        if not matrices:
            raise UserError("optim.muon_lr finds no matrices in a stack of blocks; set optim.muon_lr=null")
        self.others = adamw(module, config, without=matrices)
        group = {"params": list(matrices), "lr_scale": muon_lr / config.lr}
        self.muon = torch.optim.Muon([group], lr=muon_lr, weight_decay=config.weight_decay)
        for p in matrices:
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


def restore(optimizer: torch.optim.Optimizer | MuonAdamW, saved: dict[str, Any]) -> None:
    """Load moments and step counts from `saved`; hyperparameters stay those of the current config.

    Raises: UserError when `saved` belongs to an optimizer of other parameters.
    """
    stated = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
    except (KeyError, ValueError) as error:
        raise UserError(
            "the checkpoint's optimizer holds the state of other parameters; resume with the same freeze, lora and "
            f"optim.muon_lr settings (set or null) as before, or start a new run with init=RUN ({error})"
        ) from error
    for group, own in zip(optimizer.param_groups, stated, strict=True):
        group.update(own)


def update(
    optimizer: torch.optim.Optimizer | MuonAdamW,
    config: OptimConfig,
    step: int,
    steps: int,
    loss: Tensor,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clip the gradients and apply 0-based `step` of `steps`, unless something is not finite on any rank.

    Returns the gradient norm before clipping, and a flag: 1.0 when `loss` or the norm is not finite or `skip` is 1.0
    on any rank, else 0.0. With flag 1.0 the weights, moments and step counts do not change. Both results stay on the
    device: fused optimizers read the flag in their kernels, so the host does not wait.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = parallel.clip_gradients(parameters, config.max_grad_norm)
    finite = torch.isfinite(norm) & torch.isfinite(loss.detach()).all()
    not_finite = 1.0 - finite.float()
    not_finite = dist.largest(not_finite if skip is None else torch.maximum(not_finite, skip))
    for group in optimizer.param_groups:
        group["lr"] = rate(config, step, steps) * group.get("lr_scale", 1.0)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = not_finite  # the attribute that torch's GradScaler sets
        optimizer.step()
    elif norm.is_meta or not not_finite.item():
        optimizer.step()
    return norm, not_finite


class Ema:
    """Exponential moving average of a module's parameters; buffers are copied.

    The decay is min(decay, (1+n)/(10+n)) at update n, so that the average is usable early in training.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, torch.zeros((), dtype=torch.float64)
        self.module = deepcopy(module).eval().requires_grad_(False)

    def place(self, config: RunConfig, world: World) -> None:
        """Move the average to the device, sharded like the model."""
        if config.parallel == "fsdp":
            parallel.shard(self.module, config.precision, world)
        else:
            self.module.to(world.device)
        self.updates = self.updates.to(world.device)

    @torch.no_grad()
    def update(self, module: nn.Module, skipped: Tensor) -> None:
        """Take in the parameters of `module`; `skipped` = 1.0 (on the device) changes nothing."""
        taken = 1 - skipped
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        self.updates += taken
        weight = ((1 - decay) * taken).float()
        averaged, current = (
            [p.to_local() if hasattr(p, "to_local") else p for p in each.parameters()] for each in (self.module, module)
        )
        torch._foreach_lerp_(averaged, current, [weight] * len(averaged))
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()
