"""Linear layers for inference with weights of eight bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EIGHT_BITS", "store_in_eight_bits"]

EIGHT_BITS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""Name -> how a weight is stored, and the number that the largest weight of an output is scaled to."""


class _EightBitLinear(nn.Module):
    """A frozen `nn.Linear` with eight bits a weight and one scale an output; what it computes keeps x's precision."""

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        dtype, largest = EIGHT_BITS[kind]
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / largest).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = weight / scale[:, None]
        self.register_buffer("weight", (scaled.round() if kind == "int8" else scaled).to(dtype))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale  # compiled, both become one kernel
        return y if self.bias is None else y + self.bias


def store_in_eight_bits(module: nn.Module, kind: str) -> nn.Module:
    """Replace every linear layer below `module` by one with weights of eight bits; for inference only.

    kind: "int8", whole numbers up to 127 times the output's scale; "fp8", those of e4m3 times it.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _EightBitLinear(child, kind))
        else:
            store_in_eight_bits(child, kind)
    return module
