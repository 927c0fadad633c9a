"""Linear layers for inference on CPUs, their weights laid out once as the matrix kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["pack_linears"]


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


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every linear layer below `module`, on the CPU and in bf16, by its packed form; for inference only.

    On processors without the kernels for it (before AVX-512, or not x86) nothing is replaced.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return module
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _PackedLinear(child))
        else:
            pack_linears(child)
    return module
