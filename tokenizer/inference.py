"""Encode and decode in evaluation jobs, in float32 or bfloat16, optionally compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError
from common.images import from_pixels
from tokenizer.model import Tokenizer

__all__ = ["Inference"]


class Inference:
    """Encodes 8-bit pixels and decodes codes, in float32, or in bf16 with channels_last weights.

    The quantizer always runs in float32: in bf16, codes differ from float32's only at near ties.
    """

    def __init__(self, tokenizer: Tokenizer, precision: str = "none", compile: bool = False) -> None:
        """compile: compile `decode`. Raises: UserError for an unknown precision."""
        if precision not in ("none", "bf16"):
            raise UserError(f"precision got {precision!r}; expected none or bf16")
        self.bf16 = precision == "bf16"
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last) if self.bf16 else tokenizer
        if compile:
            tokenizer.decode = torch.compile(tokenizer.decode)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B,H,W,3) -> codes int64 (B,N)."""
        images = from_pixels(pixels)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.tokenizer.encode(images)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """codes int64 (B,k) -> images float32 (B,3,H,W), unclamped."""
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self.bf16):
            return self.tokenizer.decode(codes).float()
