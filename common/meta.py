"""Models on the meta device: for cost estimates, and for weights that come from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta", "unfilled"]


def on_meta() -> bool:
    """Whether modules are being built on the meta device, where files may be missing and values do not exist."""
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
    """Build modules whose weights come from a file, without memory and random initialisation.

    Normal initialisation is skipped, because on the meta device it makes torch import its compiler (over a second).
    """
    with torch.device("meta"), _NothingDrawn():
        yield
