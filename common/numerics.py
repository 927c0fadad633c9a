"""Precision and seeds: autocast on every device, and generators that depend on the seed and the step alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from common.errors import UserError

__all__ = ["MetaAutocast", "autocast", "step_generator"]

HALVED = {"linear", "conv1d", "conv2d", "matmul", "__matmul__", "bmm", "einsum", "scaled_dot_product_attention"}
WIDENED = {"layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "mse_loss", "cosine_similarity"}


class MetaAutocast(TorchFunctionMode):
    """What torch.autocast to bf16 does, for the meta device, which it does not serve; attention in one kernel, which
    keeps no scores, as on real devices."""

    _entered: ClassVar[list[MetaAutocast]] = []

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled

    def __enter__(self) -> MetaAutocast:
        self._entered.append(self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._entered.remove(self)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        dtype = torch.bfloat16 if name in HALVED else torch.float32 if name in WIDENED else None

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        if self.enabled and dtype and self._entered[-1] is self:
            args, kwargs = tree_map(cast, args), tree_map(cast, kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            return _fused_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p, is_causal)[
        0
    ]


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context that model code runs under.

    Raises: UserError for an unknown precision.
    """
    if precision not in ("none", "bf16"):
        raise UserError(f"run.precision got {precision!r}; expected none or bf16")
    if device.type == "meta":
        return MetaAutocast(precision == "bf16")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator that is the same on every rank and after every resume."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4096 + stream)
