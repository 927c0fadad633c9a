"""Faults in a training process: at a rank, a step and a place of it. Nothing in the product knows of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from common import checkpoint, loop, optim

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.fsync")


class InjectedError(Exception):
    """What the action "raise" raises."""


@dataclass(frozen=True)
class Fault:
    """`action` (kill | raise | nan | a signal's name) happens to `rank` in 0-based `step`, at `place`:

    step        before the step
    all_reduce  where the ranks meet: the others are inside it already, or enter it in vain
    loss        before the update (nan: this rank's loss is not a number)
    write:K     at file operation K of writing the checkpoint that follows the step
    half:NAME   when half of a file of that checkpoint is written
    hash        when a file is hashed, in any step
    """

    rank: int
    step: int
    place: str
    action: str = "kill"


def inject(fault: Fault, rank: int) -> None:
    """Arm this process, if the fault is meant for it."""
    if rank != fault.rank:
        return
    now = {"step": -1}
    place, _, detail = fault.place.partition(":")

    def strike(*_: Any) -> None:
        if now["step"] == fault.step:
            _act(fault.action)

    if place == "step":
        _before(loop._Run, "step", strike)
    elif place == "all_reduce":
        _before(torch.distributed, "all_reduce", strike)
    elif place == "loss":
        _replace_loss(lambda loss: loss * float("nan") if now["step"] == fault.step else loss)
    elif place == "write":
        at_file_operation(lambda count: strike() if count == int(detail) else None)
    elif place == "hash":
        _before(checkpoint, "sha256", lambda *_: _act(fault.action))
    elif place == "half":
        _half_a_file(detail, strike)
    else:
        raise ValueError(f"no place {fault.place!r}")
    _before(loop._Run, "step", lambda _run, step, *_rest: now.update(step=step))  # last, so that it runs first


def at_file_operation(see: Callable[[int], None]) -> None:
    """Call `see` with 0, 1, 2, ... at every file operation while a checkpoint is written and old ones are deleted."""
    counter = {"count": 0, "writing": False}

    def audit(event: str, _arguments: tuple[Any, ...]) -> None:
        if counter["writing"] and event in FILE_EVENTS:
            counter["count"] += 1
            see(counter["count"] - 1)

    sys.addaudithook(audit)  # tells of all but fsync
    _before(os, "fsync", lambda *_: audit("os.fsync", ()))
    write = checkpoint.Saver._write

    def watched(*arguments: Any) -> None:
        counter.update(count=0, writing=True)
        try:
            write(*arguments)
        finally:
            counter["writing"] = False

    checkpoint.Saver._write = watched


def _act(action: str) -> None:
    if action == "raise":
        raise InjectedError("on purpose")
    os.kill(os.getpid(), signal.SIGKILL if action == "kill" else getattr(signal, action))


def _before(owner: Any, name: str, do: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        do(*arguments)
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def _replace_loss(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    original = optim.update

    def update(*arguments: Any, **named: Any) -> Any:
        *others, loss = arguments
        return original(*others, change(loss), **named)

    optim.update = update


def _half_a_file(name: str, strike: Callable[[], None]) -> None:
    original = checkpoint.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: os.PathLike) -> None:
        original(tensors, path)
        if os.path.basename(path) == name:
            os.truncate(path, os.path.getsize(path) // 2)
            strike()
            original(tensors, path)

    checkpoint.save_file = save_file
