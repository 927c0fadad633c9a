"""LARS: stochastic gradient descent whose step is scaled to each matrix's own size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Lars"]


class Lars(torch.optim.Optimizer):
    """Momentum SGD; a matrix moves by `trust` times its norm per unit of gradient norm, a vector as in plain SGD.

    Source: You et al., "Large batch training of convolutional networks" (arXiv 1708.03888), as MAE's and GigaTok's
    linear probes use it: momentum 0.9, trust 0.001.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                update = value.grad
                if value.dim() > 1:
                    update = update + group["weight_decay"] * value
                    size, change = value.norm(), update.norm()
                    scale = group["trust"] * size / change
                    update = update * torch.where((size > 0) & (change > 0), scale, torch.ones_like(size))
                momentum = self.state[value].setdefault("momentum", torch.zeros_like(value))
                momentum.mul_(group["momentum"]).add_(update)
                value.sub_(momentum, alpha=group["lr"])
