"""torch's attention, and the one place that decides which kernels it may use.

On Hopper torch prefers cuDNN, which builds a plan for every exact combination of shapes. Fixed lengths need one plan,
decoding token by token or nested dropout would need hundreds. Flash and memory-efficient attention need none.

On a CPU, a forward and backward pass of torch's bf16 kernel takes several times as long as in float32 at 64 tokens, and
somewhat longer at 256. Training therefore computes attention in float32 there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["VARYING", "attention", "kernel_name"]

VARYING = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernels for lengths that differ between calls; fixed lengths may use all of torch's, in torch's order."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, shown: Tensor | None = None, *,
    causal: bool = False, dropout: float = 0.0, varying: bool = False,
) -> Tensor:
    """Scaled dot-product attention.

    query (B,H,L,D); key, value (B,H,S,D); shown: bool, broadcast to (B,H,L,S), True = attended. Returns (B,H,L,D).
    varying: L or S differs from call to call.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and _halves(query):
        with torch.autocast("cpu", enabled=False):
            wide = (each.float() for each in (query, key, value))
            return F.scaled_dot_product_attention(*wide, shown, dropout, causal).bfloat16()
    if not varying:
        return F.scaled_dot_product_attention(query, key, value, shown, dropout, causal)
    with sdpa_kernel(VARYING):
        return F.scaled_dot_product_attention(query, key, value, shown, dropout, causal)


def _halves(query: Tensor) -> bool:
    """Whether attention on a CPU would run in bf16."""
    return query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


def kernel_name(precision: str, device: torch.device, varying: bool = False) -> str:
    """The kernel of attention without a mask at head width 64: cuDNN, flash, memory-efficient or math."""
    if device.type != "cuda":
        return f"torch's {device.type} kernel"
    from torch.backends import cuda

    row = torch.empty(1, 1, 64, 64, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    params = cuda.SDPAParams(row, row, row, None, 0.0, False, False)
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)  # where torch prefers cuDNN
    if hopper and not varying and cuda.can_use_cudnn_attention(params):
        return "cuDNN"
    if cuda.can_use_flash_attention(params):
        return "flash"
    return "memory-efficient" if cuda.can_use_efficient_attention(params) else "math"
