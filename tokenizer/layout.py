"""The token sequence of a 1D tokenizer: numbers of ordered and of redundant tokens."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import opt
from common.errors import UserError


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
