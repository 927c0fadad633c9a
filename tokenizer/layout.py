"""The token sequence of a 1D tokenizer: numbers of ordered and of redundant tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.config import opt
from common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Layout:
    """`num_tokens` ordered tokens N, followed by `redundant` padding tokens M (training only).

    The padding tokens start as copies of the last M query tokens. GigaTok has none, ReTok 224 behind 256.
    Source: ReTok, redundant token padding.
    """

    num_tokens: int = opt(256, "ordered tokens N per image")
    redundant: int = opt(0, "redundant padding tokens M behind them; ReTok: 224")

    def __post_init__(self) -> None:
        if not isinstance(self.num_tokens, int) or not isinstance(self.redundant, int):
            return  # OmegaConf builds it with placeholders first
        if self.num_tokens < 1 or not 0 <= self.redundant <= self.num_tokens:
            raise UserError(
                f"layout got num_tokens={self.num_tokens}, redundant={self.redundant}; "
                "expected num_tokens >= 1 and 0 <= redundant <= num_tokens"
            )

    @property
    def extended(self) -> int:
        """Length of the sequence in training, N + M."""
        return self.num_tokens + self.redundant

    def visible(self, there: int, num_tokens: int | Tensor | None) -> tuple[int, Tensor | None]:
        """Number of leading tokens of `there` that a decoder uses, and a mask (B,keep) of those hidden per image.

        num_tokens: None = at most N; int; or int64 (B,) for images of different lengths.
        """
        if num_tokens is None:
            return min(there, self.num_tokens), None
        if isinstance(num_tokens, int):
            if not 1 <= num_tokens <= there:
                raise UserError(f"num_tokens={num_tokens} but there are {there} tokens; expected 1..{there}")
            return num_tokens, None
        # All tokens are kept: reading the largest number would wait for the device.
        return there, num_tokens.new_ones(there).cumsum(0)[None] > num_tokens[:, None]
