"""Linear layers for inference: weights laid out as the machine's matrix kernels read them, or kept in eight bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EIGHT_BITS", "pack_linears", "store_in_eight_bits"]

EIGHT_BITS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""Name -> how a weight is stored, and the number that the largest weight of an output is scaled to."""


class _PackedLinear(nn.Module):
    """A frozen `nn.Linear` in oneDNN's own layout; without it, every call would bring the weights into that layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        # A plain attribute: the layout is this machine's and belongs to no state dict.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> (..., outputs)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


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
        if x.device.type == "cpu" and (self.weight.dtype, x.dtype) == (torch.int8, torch.bfloat16):
            y = torch._weight_int8pack_mm(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])
        else:  # compiled, a weight is converted on its way from memory into the product
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every linear layer below `module`, on the CPU and in bf16, by its packed form; for inference only.

    On processors without the kernels for it (before AVX-512, or not x86) nothing is replaced.
    """
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _replace(module, _PackedLinear)
    return module


def store_in_eight_bits(module: nn.Module, kind: str) -> nn.Module:
    """Replace every linear layer below `module` by one with weights of eight bits; for inference only.

    kind: "int8", whole numbers up to 127 times the output's scale; "fp8", those of e4m3 times it.
    """
    _replace(module, lambda linear: _EightBitLinear(linear, kind))
    return module


def _replace(module: nn.Module, made: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, made(child))
        else:
            _replace(child, made)
