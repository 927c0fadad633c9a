"""The base class of everything that the training loop trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint, numerics, optim, parallel
from common.dist import World
from common.guard import Alarm
from common.options import OptimConfig, RunConfig

__all__ = ["Trainee"]


class Trainee:
    """A model, its optimizer, its weight average, and the steps that train it.

    A subclass builds its networks, calls `start`, and defines `inputs` and `losses`. The loop calls every method on
    every rank at the same time, so methods may communicate.

    A step that is not finite changes nothing: `update` skips the optimizer and the average, and the tensors of `kept`,
    which forward passes change, are restored. No step waits for the device.
    """

    alarms: Sequence[Alarm] = ()
    ema: optim.Ema | None = None

    def __init__(self, run: RunConfig, schedule: OptimConfig, world: World) -> None:
        self.run, self.schedule, self.world = run, schedule, world
        torch.manual_seed(numerics.derive_seed(run.seed, "weights"))

    def start(self, model: nn.Module, trained: nn.Module | None = None, ema_decay: float = 0.0) -> None:
        """Copy the weight average (`ema_decay` 0 = none), move everything to its device, make the optimizer.

        `model` is what checkpoints hold, `trained` the module that contains it and that `losses` calls as
        `self.wrapped`.
        """
        self.model, self.trained = model, trained or model
        self.ema = optim.Ema(model, ema_decay) if ema_decay else None
        self.wrapped = self.wrap(self.trained).train()
        if self.ema:
            self.ema.place(self.run, self.world)
        self.optimizer = self.make_optimizer()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Move `module` to its device and make the module that steps call."""
        return parallel.wrap(module, self.run, self.world)

    def make_optimizer(self) -> torch.optim.Optimizer | optim.MuonAdamW:
        return optim.adamw(self.trained, self.schedule)

    def inputs(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, ...]:
        """What `losses` takes, for this rank's batch; tensors (B,...), which are split into micro-batches."""
        raise TypeError(f"{type(self).__name__} defines no inputs")

    def losses(self, step: int, number: int, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss of micro-batch `number` of 0-based `step`, and the scalars to log."""
        raise TypeError(f"{type(self).__name__} defines no losses")

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Forward, backward and update of 0-based `step`; returns scalars to log, as device tensors.

        `not_finite` is 1.0 when the update was skipped. Any other key may be missing from some steps.
        """
        parts = parallel.micro_batches(self.inputs(batch, step), self.run.accumulate)
        # Dropout and augmentation use the global generators, which are seeded so that a resume repeats the step.
        torch.manual_seed(numerics.derive_seed(self.run.seed, "step", step, "rank", self.world.rank))
        before = [tensor.detach().clone() for tensor in self.kept()]
        self.optimizer.zero_grad(set_to_none=True)
        total: Tensor | float = 0
        logged: dict[str, Tensor] = {}
        for number, part in enumerate(parts):
            with parallel.synchronised(self.wrapped, now=number == len(parts) - 1):
                loss, scalars = self.losses(step, number, *part)
                (loss / len(parts)).backward()
            total = total + loss.detach() / len(parts)
            for name, value in scalars.items():
                logged[name] = logged.get(name, 0) + value.detach() / len(parts)
        logged |= self.update(step, total)
        rejected = logged["not_finite"].bool()
        with torch.no_grad():
            for tensor, old in zip(self.kept(), before, strict=True):
                tensor.copy_(torch.where(rejected, old, tensor))
        if self.ema:
            self.ema.update(self.model, logged["not_finite"])
        return logged

    def update(self, step: int, loss: Tensor) -> dict[str, Tensor]:
        """Apply the gradients of 0-based `step`; returns scalars to log, `not_finite` among them."""
        norm, not_finite = optim.update(self.optimizer, self.schedule, step, self.run.steps, loss)
        rate = torch.full_like(norm, optim.rate(self.schedule, step, self.run.steps))
        return {"train/grad_norm": norm, "train/lr": rate, "not_finite": not_finite}

    def kept(self) -> Iterable[Tensor]:
        """The tensors that forward passes may change, in a fixed order: buffers of modules in training mode."""
        for module in self.trained.modules():
            if module.training:
                yield from module.buffers(recurse=False)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The weight average, or the model if there is none: in evaluation mode, whole, under the run's autocast."""
        sharded = self.ema.module if self.ema else self.trained
        with torch.no_grad(), parallel.gathered(sharded, self.run.precision, self.world.device):
            yield self.ema.module if self.ema else self.model.eval()
        self.wrapped.train()

    def network(self) -> nn.Module:
        """The module that is sharded, for estimates."""
        return self.trained

    def frozen(self) -> list[nn.Module]:
        """Frozen networks that the losses use, for estimates."""
        return []

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by file name: "model", "ema" and those of the subclass."""
        return {"model": self.model.state_dict()} | ({"ema": self.ema.state_dict()} if self.ema else {})

    def state(self) -> dict[str, Any]:
        """Optimizers and counters: tensors and plain containers."""
        averaged = {"ema_updates": self.ema.updates} if self.ema else {}
        return {"optimizer": self.optimizer.state_dict(), **averaged}

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Inverse of `weights` and `state`; `weights(name)` reads one file."""
        checkpoint.load_into(self.model, weights("model"), "model")
        optim.restore(self.optimizer, state["optimizer"])
        if self.ema:
            checkpoint.load_into(self.ema.module, weights("ema"), "ema")
            self.ema.updates.fill_(float(state["ema_updates"]))

    def validate(self) -> dict[str, float]:
        """Scalars on held-out data."""
        return {}
