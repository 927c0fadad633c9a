"""Finite scalar quantization: every channel is rounded to one of a few levels; the grid of levels is the codebook."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_maps, to_rows

EPSILON = 1e-3


class FiniteScalarQuantizer(CodeQuantizer):
    """Channel i has levels[i] values, evenly spaced in [-1,1]; no codebook is learned and no loss is added.

    A code is a number in mixed radix, the first channel its lowest digit. Gradients pass straight through the rounding.
    Source: Mentzer et al. 2023.
    """

    @dataclass
    class Config:
        levels: list[int] = opt([8, 8, 8, 5, 5, 5], "values of each channel; their product is the codebook size")

    def __init__(self, config: Config):
        if not config.levels or min(config.levels) < 2:
            raise UserError(f"quantizer.levels got {list(config.levels)}; expected numbers of 2 or more, one a channel")
        super().__init__(config, math.prod(config.levels), len(config.levels))
        places = [math.prod(config.levels[:channel]) for channel in range(len(config.levels))]
        self.register_buffer("levels", torch.tensor(config.levels, device="cpu"), persistent=False)
        self.register_buffer("places", torch.tensor(places, device="cpu"), persistent=False)

    def lookup(self, codes: Tensor) -> Tensor:
        half = self.levels // 2
        return (codes[..., None] // self.places % self.levels - half).float() / half

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,e,H,W), e = number of levels -> vectors of the same shape, fp32, and codes (B,H*W)."""
        with autocast("none", latents.device):
            bounded = self._bound(to_rows(latents))
            digits = bounded.round()
            half = self.levels // 2
            codes = ((digits.detach().long() + half) * self.places).sum(dim=1)
            if self.training:
                self._remember(codes)
            through = (bounded + (digits - bounded).detach()) / half
            return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), {})

    def _bound(self, rows: Tensor) -> Tensor:
        """Into the open interval whose whole numbers are the levels; an even number of them lies off centre by half."""
        reach = (self.levels - 1) * (1 + EPSILON) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (rows + torch.atanh(offset / reach)).tanh() * reach - offset
