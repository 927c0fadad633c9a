"""Models without weights, on the meta device: to count what they cost, or because a file brings the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta", "unfilled"]


def on_meta() -> bool:
    """Whether modules are being built on the meta device: then files need not be there, and values mean nothing."""
    return torch.get_default_device().type == "meta"


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return args[0] if function is Tensor.normal_ else function(*args, **kwargs)


@contextmanager
def unfilled() -> Iterator[None]:
    """Build modules here whose weights come from a file: they take no memory, and no time to draw.

    On the meta device alone, torch imports its whole compiler for the first normal distribution: over a second.
    """
    with torch.device("meta"), _NothingDrawn():
        yield
