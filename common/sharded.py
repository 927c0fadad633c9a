"""The part of a checkpoint that every process writes its own piece of: folders of safetensors files, one a process.

torch.distributed.checkpoint plans who writes and reads what, so any number of processes reads what any other wrote.
Its safetensors format holds no pickles.
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
    """The values of nested dicts for which `chosen(dotted path, value)`, by that path."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= select(value, chosen, f"{path}{key}.")
        elif chosen(f"{path}{key}", value):
            found[f"{path}{key}"] = value
    return found


def without(tree: Mapping[Any, Any], paths: Collection[str], path: str = "") -> dict[Any, Any]:
    """Nested dicts less the values at these dotted paths."""
    return {
        key: without(value, paths, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{path}{key}" not in paths
    }


def like(own: Any, given: Any) -> Any:
    """`given` with every whole tensor cut as its counterpart in `own` is; dicts are followed."""
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        return {key: like(own.get(key), value) for key, value in given.items()}
    if isinstance(own, DTensor) and isinstance(given, Tensor) and not isinstance(given, DTensor):
        return distribute_tensor(given.to(own.device), own.device_mesh, own.placements)
    return given


def meet(problem: OSError | None) -> None:
    """Wait for the other processes. Raises: OSError on all of them when one comes with a problem."""
    problems: list[OSError | None] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(problems, problem, group=_group())
    if any(problems):
        raise next(filter(None, problems))


def on_host(value: DTensor, held: Tensor) -> DTensor:
    """A copy of a sharded tensor whose own part lies in `held`, host memory."""
    held.copy_(value.detach().to_local(), non_blocking=True)
    mesh = DeviceMesh.from_group(_group(), "cpu")
    return DTensor.from_local(held, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride())


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Every process of the group calls this; tensors that are whole are written by rank 0.

    Raises: UserError when any of them could not write.
    """
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=_group())
    except CheckpointException as error:
        reasons = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise UserError(f"checkpoint shards {str(folder)!r} could not be written ({reasons}); free space") from error


def read_into(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, whole or sharded over any number of processes, in place."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not torch_dist.is_initialized(), process_group=_group())
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint shards {str(folder)!r} do not fit ({error}); use another checkpoint") from error


def names(folder: Path) -> set[str]:
    """What the shards in a folder hold."""
    return set(dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, put together in one process."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    found = reader.read_metadata().state_dict_metadata
    whole = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in found.items()}
    dcp.load(whole, storage_reader=reader, no_dist=True)
    return whole


def _group() -> torch_dist.ProcessGroup | None:
    """A group of its own, on the CPU: a checkpoint written beside the training must not use the training's."""
    return _group_beside(torch_dist.group.WORLD) if torch_dist.is_initialized() else None


@functools.cache
def _group_beside(world: torch_dist.ProcessGroup) -> torch_dist.ProcessGroup:
    return torch_dist.new_group(backend="gloo")
