"""Autocast on every device, and the derivation of every random stream from the run's seed."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from common.errors import UserError

__all__ = [
    "MetaAutocast", "autocast", "derive_seed", "numpy_generator", "step_generator",
    "torch_generator",
]  # fmt: skip

HALVED = {"linear", "conv1d", "conv2d", "matmul", "__matmul__", "bmm", "einsum", "scaled_dot_product_attention"}
WIDENED = {"layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "mse_loss", "cosine_similarity"}


class MetaAutocast(TorchFunctionMode):
    """torch.autocast to bf16 for the meta device, which torch does not support.

    Attention runs as one kernel that does not keep its scores, as on real devices.
    """

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
    """The context in which model code runs.

    Raises: UserError for an unknown precision.
    """
    if precision not in ("none", "bf16"):
        raise UserError(f"run.precision got {precision!r}; expected none or bf16")
    if device.type == "meta":
        return MetaAutocast(precision == "bf16")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def derive_seed(seed: int, *stream: int | str) -> int:
    """The seed of one random stream of a run: an int in [0, 2**63), whose low 32 bits are as random as the others.

    torch's CPU generator keeps only the low 32 bits of its seed, so seeds must not be built from sums and products of
    `seed`, step and rank. `seed` is any int; `stream` names the use, e.g. ("step", 17, "rank", 1).
    """
    digest = hashlib.blake2b(repr((int(seed), *stream)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator of one stream (see `derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def numpy_generator(seed: int, *stream: int | str) -> np.random.Generator:
    """A numpy generator of one stream (see `derive_seed`)."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *stream)))


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The generator of 0-based `step`, the same on every rank and after every resume."""
    return torch_generator(seed, "step", step, stream)
