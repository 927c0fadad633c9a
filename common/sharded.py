"""The sharded part of a checkpoint: folders of safetensors files, one file per process.

torch.distributed.checkpoint plans reads and writes, so the number of processes may change between them. Its
safetensors format contains no pickles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from common.errors import UserError

__all__ = ["like", "meet", "names", "on_host", "read_into", "read_whole", "select", "without", "write"]


def select(tree: Mapping[Any, Any], chosen: Callable[[str, Any], bool], path: str = "") -> dict[str, Tensor]:
    """The values of nested dicts with `chosen(dotted path, value)`, by dotted path."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= select(value, chosen, f"{path}{key}.")
        elif chosen(f"{path}{key}", value):
            found[f"{path}{key}"] = value
    return found


def without(tree: Mapping[Any, Any], paths: Collection[str], path: str = "") -> dict[Any, Any]:
    """Nested dicts without the values at these dotted paths."""
    return {
        key: without(value, paths, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{path}{key}" not in paths
    }


def like(own: Any, given: Any) -> Any:
    """`given` (nested dicts) with every whole tensor sharded like its counterpart in `own`."""
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        return {key: like(own.get(key), value) for key, value in given.items()}
    if isinstance(own, DTensor) and isinstance(given, Tensor) and not isinstance(given, DTensor):
        return distribute_tensor(given.to(own.device), own.device_mesh, own.placements)
    return given


def meet(problem: OSError | None) -> None:
    """Wait for all processes. Raises: OSError on all of them when one passes a problem."""
    problems: list[OSError | None] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(problems, problem, group=_group())
    if any(problems):
        raise next(filter(None, problems))


def on_host(value: DTensor, held: Tensor) -> DTensor:
    """Copy a sharded tensor; the local part goes into `held`, a tensor in host memory."""
    held.copy_(value.detach().to_local(), non_blocking=True)
    mesh = DeviceMesh.from_group(_group(), "cpu")
    return DTensor.from_local(held, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write shards. Every process calls it; rank 0 writes whole tensors. Raises: UserError when any write failed."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=_group())
    except CheckpointException as error:
        reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise UserError(f"checkpoint shards {str(folder)!r} could not be written ({reasons}); free space") from error


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill whole or sharded tensors in place."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not torch_dist.is_initialized(), process_group=_group())
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint shards {str(folder)!r} do not fit ({error}); use another checkpoint") from error


def names(folder: Path) -> set[str]:
    """The names of the tensors in a folder."""
    return set(dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole, in one process."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    whole = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in found.items()}
    dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole


def _group() -> torch_dist.ProcessGroup | None:
    """A separate gloo group: a checkpoint in a background thread must not use the training's group."""
    return _group_beside(torch_dist.group.WORLD) if torch_dist.is_initialized() else None


@functools.cache
def _group_beside(world: torch_dist.ProcessGroup) -> torch_dist.ProcessGroup:
    return torch_dist.new_group(backend="gloo")
