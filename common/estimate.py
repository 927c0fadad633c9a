"""Cost of a training step without allocating anything: memory of one process, FLOPs, seconds.

The trainer is built on the meta device and takes one step there. torch counts the FLOPs of the forward and backward
pass; the tensors that autograd saves for the backward pass are summed while they exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common import parallel
from common.dist import World
from common.errors import UserError
from common.numerics import MetaAutocast
from common.options import EstimateConfig, RunConfig
from common.trainee import Trainee

__all__ = ["Estimate", "measure", "shortage"]

class _Held:
    """A tensor that autograd has saved."""

    def __init__(self, tensor: Tensor, ledger: _Ledger) -> None:
        self.tensor, self.ledger, self.storage = tensor, ledger, tensor.untyped_storage()
        ledger.add(self.storage, 1)

    def __del__(self) -> None:
        self.ledger.add(self.storage, -1)


class _Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Peak of the bytes that autograd has saved, without the given weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__(lambda tensor: _Held(tensor.detach(), self), lambda held: held.tensor)
        self.left_out = {tensor.untyped_storage()._cdata for tensor in weights}
        self.users: Counter[int] = Counter()
        self.now = self.peak = 0

    def add(self, storage: torch.UntypedStorage, change: int) -> None:
        if storage._cdata in self.left_out:
            return
        before = self.users[storage._cdata]
        self.users[storage._cdata] += change
        if 0 in (before, before + change):
            self.now += change * storage.nbytes()
            self.peak = max(self.peak, self.now)


@dataclass
class Estimate:
    """Cost of one step; bytes are those of one process."""

    ranks: int
    parameters: int
    trainable: int
    batch_size: int
    flops: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    average_bytes: int
    gathered_bytes: int
    discriminator_bytes: int
    frozen_bytes: int
    activations_bytes: int

    @property
    def memory_bytes(self) -> int:
        return sum(value for name, value in vars(self).items() if name.endswith("_bytes"))

    def lines(self, tflops: float) -> list[str]:
        """A readable summary; `tflops`: sustained throughput of one process, 1e12 FLOP/s."""
        seconds = self.flops / self.ranks / (tflops * 1e12)
        memory = [(name.removesuffix("_bytes"), value) for name, value in vars(self).items() if name.endswith("_bytes")]
        return [
            f"{self.parameters:,} parameters, {self.trainable:,} of them trained; {self.batch_size} images a step "
            f"on {self.ranks} processes",
            f"{self.flops / 1e12:,.2f} TFLOP a step, {self.flops / self.batch_size / 1e9:,.1f} GFLOP an image",
            f"{seconds:.4g} s a step, {self.batch_size / seconds:,.1f} images/s, at {tflops:g} TFLOP/s a process",
            "memory of a process, GB:",
            *(f"  {name:13s} {value / 1e9:9.3f}" for name, value in [*memory, ("in all", self.memory_bytes)]),
        ]


def measure(
    build: Callable[[World], Trainee],
    batch: Callable[[int], dict[str, Tensor]],
    batch_size: int,
    run: RunConfig,
    settings: EstimateConfig,
) -> Estimate:
    """`build` makes the trainer, `batch(count)` a batch of one process; both are called on the meta device.

    The measured step is the last of the run, in which all permanent losses are active.

    Raises: UserError when the batch does not divide over the processes.
    """
    ranks = settings.ranks
    if ranks < 1 or batch_size % ranks:
        raise UserError(f"data.batch_size={batch_size} does not divide over estimate.ranks={ranks} processes")
    with torch.device("meta"):
        trainee = build(World(0, 1, torch.device("meta")))
        images = batch(batch_size // ranks)
    if run.recompute:  # torch restores its own autocast for the recomputation, but not MetaAutocast
        for unit in parallel.units(trainee.network()):
            unit.forward.keywords["context_fn"] = lambda: (nullcontext(), MetaAutocast(run.precision == "bf16"))
    weights, frozen = trainee.weights(), list(_tensors(trainee.frozen()))
    own = [tensor for group in trainee.optimizer.param_groups for tensor in group["params"]]
    ledger = _Ledger([*frozen, *own, *(tensor for file in weights.values() for tensor in file.values())])
    with FlopCounterMode(display=False) as counter, ledger:
        trainee.step(images, run.steps - 1)
    sharded = run.parallel == "fsdp" and ranks > 1
    share = ranks if sharded else 1
    model = _bytes(weights["model"].values())
    discriminator = weights.get("discriminator", {}).values()
    return Estimate(
        ranks=ranks,
        parameters=sum(p.numel() for p in trainee.network().parameters()),
        trainable=sum(tensor.numel() for tensor in own),
        batch_size=batch_size,
        flops=counter.get_total_flops() * ranks,
        weights_bytes=model // share,
        gradients_bytes=_bytes(own) // share,
        optimizer_bytes=2 * _bytes(own) // share,
        average_bytes=_bytes(weights.get("ema", {}).values()) // share,
        gathered_bytes=_gathered(trainee.network(), run.precision) if sharded else 0,
        discriminator_bytes=4 * _bytes(discriminator),  # weights, gradients, two moments
        frozen_bytes=_bytes(frozen),
        activations_bytes=ledger.peak,
    )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def shortage(
    without_data: tuple[Callable[[World], Trainee], Callable[[int], dict[str, Tensor]]], batch_size: int,
    run: RunConfig, world: World,
) -> str | None:
    """A warning when a step is estimated to need more memory than the GPU has free, else None.

    `without_data`: the arguments `build` and `batch` of `measure`.
    """
    free = free_bytes(world.device) if world.is_main else None
    if free is None:
        return None
    needed = measure(*without_data, batch_size, run, EstimateConfig(ranks=world.size)).memory_bytes
    if needed <= free:
        return None
    return (
        f"warning: a step is estimated to need {needed / 1e9:.1f} GB on each GPU, {free / 1e9:.1f} GB are free; "
        "try run.recompute=true, run.accumulate=2 or run.parallel=fsdp"
    )


def _gathered(module: nn.Module, precision: str) -> int:
    """Bytes of gathered parameters: those outside of units, two units, and the gradients of one unit."""
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in parallel.units(module)]
    outside = sum(p.numel() for p in module.parameters()) - sum(sizes)
    return 4 * outside + 3 * max(sizes, default=0) * (2 if precision == "bf16" else 4)


def _tensors(modules: Iterable[nn.Module]) -> Iterable[Tensor]:
    for module in modules:
        yield from (*module.parameters(), *module.buffers())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
