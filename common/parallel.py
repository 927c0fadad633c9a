"""One model on many processes (`run.parallel`: none, ddp or fsdp), activation checkpointing, torch.compile.

Sharded parameters are DTensors. Every function here accepts plain tensors as well, so trainers do not distinguish them.
A unit is sharded, recomputed and compiled as one: an element of one of the model's ModuleLists.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from common import dist
from common.dist import World
from common.errors import UserError
from common.numerics import autocast
from common.options import RunConfig

__all__ = [
    "clip_gradients", "compile_units", "gathered", "micro_batches", "replicate", "shard", "synchronised", "units",
    "wrap",
]  # fmt: skip


def units(module: nn.Module) -> list[nn.Module]:
    """The outermost ModuleList elements that have a forward of their own: transformer layers, residual blocks."""
    found: list[nn.Module] = []
    for child in module.children():
        for element in child if isinstance(child, nn.ModuleList) else ():
            is_unit = type(element).forward is not nn.Module.forward
            found += [element] if is_unit else units(element)
        if not isinstance(child, nn.ModuleList):
            found += units(child)
    return found


def compile_units(module: nn.Module) -> None:
    """torch.compile the units in place.

    Units of one class share compiled code, one version per combination of shapes and modes. By default torch runs
    all versions beyond the eighth uncompiled; here the limit follows the number of units, and exceeding it raises.
    """
    from torch._dynamo import config as limits  # takes a second to import

    found = units(module)
    versions = 8 * max(1, len(found))  # training or not, with or without gradients, two batch sizes
    limits.recompile_limit = max(limits.recompile_limit, versions)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, versions)
    limits.fail_on_recompile_limit_hit = True
    for unit in found:
        unit.forward = torch.compile(unit.forward)


def wrap(module: nn.Module, config: RunConfig, world: World) -> nn.Module:
    """Move a model to its device and return the module that training steps call. Copy a weight average before.

    Raises: UserError for an unknown `run.parallel`, or `none` with several processes.
    """
    if config.parallel not in ("none", "ddp", "fsdp"):
        raise UserError(f"run.parallel got {config.parallel!r}; expected none, ddp or fsdp")
    if config.parallel == "none" and world.size > 1:
        raise UserError(
            f"run.parallel=none with {world.size} processes would train {world.size} models; use ddp or fsdp"
        )
    if config.compile or (config.compile is None and world.device.type == "cuda"):
        compile_units(module)
    for unit in units(module):
        if config.recompute:
            unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
    if config.parallel == "fsdp":
        return shard(module, config.precision, world)
    return replicate(module, world)


def replicate(module: nn.Module, world: World) -> nn.Module:
    """One copy per process, with averaged gradients (DDP)."""
    module.to(world.device)
    if world.size == 1:
        return module
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, forward_sync_buffers=False)


def shard(module: nn.Module, precision: str, world: World) -> nn.Module:
    """Parameters, gradients and optimizer state in equal parts (FSDP2), unit by unit.

    Under bf16 the parameters of units are gathered in bf16 (autocast would cast their matrices anyway) and their
    gradients are reduced in fp32. Parameters outside of units (quantizer, embeddings, heads) stay in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # a second of every --help otherwise

    if world.size == 1:
        return module.to(world.device)
    mesh = init_device_mesh(world.device.type, (world.size,))
    travel = MixedPrecisionPolicy()
    if precision == "bf16":
        travel = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # torch warns of in-place changes of a module's output; there are none here.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    for unit in units(module):
        if next(unit.parameters(), None) is not None:
            fully_shard(unit, mesh=mesh, mp_policy=travel)
    return fully_shard(module, mesh=mesh)


def _is_sharded(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


@contextmanager
def gathered(module: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """Whole parameters on every process, under the run's autocast: validation and other passes outside of training.

    Any method works, and processes may call it a different number of times. `module` is the argument of `wrap` or
    `shard`. Units that are sharded under bf16 hold bf16 parameters, which need the autocast.
    """
    parts = [part for part in module.modules() if _is_sharded(part)]
    if parts and parts[0] is module:  # else the first pass through a unit would make that unit the root
        module._get_fsdp_state()._lazy_init()
    for part in parts:
        part.unshard()
        if part is not module:
            part.set_reshard_after_forward(False, recurse=False)
    try:
        with autocast(precision, device):
            yield
    finally:
        for part in parts:
            if part is not module:
                part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


@contextmanager
def synchronised(wrapped: nn.Module, now: bool) -> Iterator[None]:
    """Forward and backward of one micro-batch; only those of the last one (`now`) exchange gradients."""
    if _is_sharded(wrapped):
        wrapped.set_requires_gradient_sync(now)
    elif isinstance(wrapped, DistributedDataParallel) and not now:
        with wrapped.no_sync():
            yield
        return
    yield


def micro_batches(tensors: Iterable[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """Split this process's batch into `count` equal parts, each a tuple like `tensors`.

    Raises: UserError if it does not divide.
    """
    tensors = tuple(tensors)
    rows = len(tensors[0])
    if count < 1 or rows % count:
        raise UserError(f"run.accumulate={count} does not divide the {rows} images of a process; change one of them")
    return list(zip(*(tensor.chunk(count) for tensor in tensors), strict=True))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients to a norm of at most `limit` (0 = leave them); returns the norm before, over all parts."""
    return dist.whole(nn.utils.clip_grad_norm_(parameters, limit or float("inf")))
