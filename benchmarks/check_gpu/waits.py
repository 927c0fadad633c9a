"""Host-device synchronisation within a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["waits_of"]


class _Constants(TorchFunctionMode):
    """Collects tensors that are made of Python numbers on `device`."""

    def __init__(self, device: torch.device, found: list[str]) -> None:
        super().__init__()
        self.device, self.found = device, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and out.device.type == self.device.type
        if made and (not isinstance(args[0], Tensor) or func is Tensor.new_tensor):
            self.found.append(f"{func.__name__} of {tuple(out.shape)}")
        return out


class _Copies(TorchDispatchMode):
    """Collects copies of CPU tensors to `device` that are not asynchronous."""

    def __init__(self, device: torch.device, found: list[str]) -> None:
        super().__init__()
        self.device, self.found = device, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [each for each in args if isinstance(each, Tensor)]
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        waited_for = copies and not (kwargs or {}).get("non_blocking") and out.device.type == self.device.type
        if waited_for and any(each.device.type == "cpu" for each in given):
            self.found.append(f"{func} of {tuple(given[-1].shape)}")
        return out


def waits_of(call: Callable[[], Any], device: torch.device) -> list[str]:
    """Descriptions of the synchronisations that `call` causes, which must leave its results on the device.

    On CUDA torch's own debug mode raises at the first one. Elsewhere the meta device stands in: reading a value there
    raises, and copies from the CPU are collected.
    """
    try:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            call()
            return []
        found: list[str] = []
        with _Constants(device, found), _Copies(device, found):
            call()
        return found
    except RuntimeError as error:
        return [str(error).splitlines()[0]]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
