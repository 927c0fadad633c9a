"""Rank, device and collectives. One process needs no group; CPU ranks use gloo, CUDA ranks nccl."""

from __future__ import annotations

import atexit
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from common.errors import UserError


@dataclass(frozen=True)
class World:
    """This process: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init(device: str = "auto", timeout_minutes: float = 60.0) -> World:
    """Read torchrun's variables, choose the device ("auto", "cpu", "cuda"), and join the process group if there is one.

    Raises: UserError when CUDA is asked for and missing, and under "auto" when the machine has GPUs that torch cannot
    use.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"device got {device!r}; expected auto, cpu or cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        listed = [] if device == "cuda" else listed_gpus()
        if listed:
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            raise UserError(
                f"this machine lists {len(listed)} GPUs ({listed[0]}, driver {driver_version()}), but torch "
                f"{torch.__version__} with {built} cannot use them; install a driver and a torch build that match, or "
                "pass --device cpu (run.device=cpu) to use the CPU"
            )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={device} but no CUDA device is visible; pass --device cpu or --device auto")
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if size > 1 and not torch_dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        torch_dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    return World(rank, size, chosen)


def listed_gpus() -> list[str]:
    """The NVIDIA GPUs that the driver's own tool lists, unless CUDA_VISIBLE_DEVICES hides all of them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    found = re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", said, re.M)
    return found or [path.name for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def driver_version() -> str:
    """The version of the NVIDIA kernel module, or "unknown"."""
    try:
        found = re.search(r"Kernel Module\D+([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"


_left: list[torch_dist.ProcessGroup] = []
atexit.register(_left.clear)


def close() -> None:
    """Destroy the process group.

    The group object is kept until the process ends. Otherwise a DDP module that outlives this call would hold the last
    reference; torch frees it under the interpreter's lock while joining gloo threads that wait for that lock.
    """
    if torch_dist.is_initialized():
        _left.append(torch_dist.group.WORLD)
        torch_dist.destroy_process_group()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Initialise and destroy the process group of a job that does not train."""
    try:
        yield init(device)
    finally:
        close()


class Parts(Protocol):
    """A result that any number of processes write in parts, and that can be continued after an interruption."""

    def prepare(self) -> None:
        """Create or check the folder. One process calls it before anything is written."""

    def missing(self) -> list[int]:
        """Numbers of the parts that do not exist yet."""


def claim(parts: Parts, world: World) -> list[int]:
    """This process's share of the missing parts. No process writes before all have listed the missing parts."""
    if world.is_main:
        parts.prepare()
    barrier()
    todo = parts.missing()[world.rank :: world.size]
    barrier()
    return todo


def size() -> int:
    """Number of ranks (1 without a process group)."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def rank() -> int:
    """This process's number (0 without a process group)."""
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def barrier() -> None:
    if torch_dist.is_initialized():
        torch_dist.barrier()


def mean(values: dict[str, Tensor]) -> dict[str, float]:
    """Scalars averaged over ranks, in one collective."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().double().reshape(()) for value in values.values()])
    if size() > 1:
        torch_dist.all_reduce(stacked)
        stacked /= size()
    return dict(zip(values, stacked.tolist(), strict=True))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: object, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Differentiable sum over ranks; the backward pass sums the gradients of all ranks."""
    return _Sum.apply(tensor) if size() > 1 else tensor


def gather_rows(rows: Tensor) -> Tensor:
    """Differentiable concatenation of the rows (n,D) of all ranks, in rank order."""
    if size() == 1:
        return rows
    before, after = rank() * len(rows), (size() - 1 - rank()) * len(rows)
    return all_reduce_sum(nn.functional.pad(rows, (0, 0, before, after)))


def largest(tensor: Tensor) -> Tensor:
    """Elementwise maximum over ranks, left on the device. Not for values that may be NaN: backends differ on them."""
    if size() > 1:
        tensor = tensor.clone()
        torch_dist.all_reduce(tensor, op=torch_dist.ReduceOp.MAX)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on any."""
    return bool(largest(torch.tensor(float(flag), device=device)).item())


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, if it is sharded. Every rank calls it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The same-shaped tensor of every rank, in rank order."""
    if size() == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(size())]
    torch_dist.all_gather(gathered, tensor.contiguous())
    return gathered


def gather_objects(value: object) -> list[object]:
    """Small Python values of every rank, on every rank, in rank order."""
    if size() == 1:
        return [value]
    gathered: list[object] = [None] * size()
    torch_dist.all_gather_object(gathered, value)
    return gathered
