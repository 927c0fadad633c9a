"""Base class of discriminators on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class OnFrozen(nn.Module, Generic[Network]):
    """A module with a frozen backbone that is in no state dict or optimizer, but moves with `to` and `double`."""

    def __init__(self, backbone: Network):
        super().__init__()
        self._hidden = (backbone,)  # a tuple hides it from state_dict and parameters

    @property
    def backbone(self) -> Network:
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.backbone._apply(fn)
        return super()._apply(fn, recurse)
