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
    "MetaAutocast", "autocast", "bits_of", "derive_seed", "mix", "numpy_generator", "place", "random_bits", "row_keys",
    "step_generator", "to_device", "torch_generator", "uniform",
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


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on `device` that the host does not wait for: CUDA copies pinned memory asynchronously."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a convolutional network to `device`, on CUDA with weights in channels_last, the layout of its kernels."""
    return module.to(device, memory_format=torch.channels_last if device.type == "cuda" else torch.preserve_format)


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


_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def random_bits(seed: int, rows: Tensor, columns: int) -> Tensor:
    """int64 (B, columns), every 64 bits equally likely: a pure function of (seed, rows int64 (B,), column).

    It runs on the device of `rows` and gives the same numbers on every device, so ranks need to draw only their own
    rows. Source: SplitMix64 (Steele, Lea, Flood 2014) as a counter-based generator.
    """
    return bits_of(row_keys(seed, rows), columns)


def row_keys(seed: int, rows: Tensor) -> Tensor:
    """int64 (B,): what `bits_of` expands for every row."""
    return mix(mix(torch.full_like(rows, _signed(seed * _GOLDEN))) + rows)


def bits_of(keys: Tensor, columns: int) -> Tensor:
    """int64 (B, columns) of keys (B,)."""
    return mix(keys[:, None] + torch.arange(1, columns + 1, device=keys.device) * _signed(_GOLDEN))


def uniform(bits: Tensor) -> Tensor:
    """float32 in (0,1), exclusive, from random bits."""
    # 23 bits and a half: every value is exact in float32, and neither 0 nor 1 occurs.
    return (bits >> 41).bitwise_and_(0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, in place; arithmetic wraps, shifts are masked to act as on unsigned numbers."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_signed(_MIX_1))
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_signed(_MIX_2))
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """The generator of 0-based `step`, the same on every rank and after every resume."""
    return torch_generator(seed, "step", step, stream)
