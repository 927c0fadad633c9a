"""Lookup-free quantization: a code's bits are the signs of the channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_maps, to_rows
from tokenizer.quantizers.perturbation import Perturbation, perturb
from tokenizer.quantizers.vq import entropy_loss


class LookupFreeQuantizer(CodeQuantizer):
    """Vectors are corners of the cube [-1,1]^e, e = log2 K; bit i of a code (lowest first) is set where channel i > 0.

    Losses: commit = beta * mean (sg q - z)^2, entropy as in `vq`, which keeps all corners in use.
    Source: MAGVIT-v2 (Yu et al. 2023).
    """

    @dataclass
    class Config:
        codebook_size: int = opt(16384, "number of codes K, a power of two; a vector has log2 K channels")
        commit_weight: float = opt(0.25, "beta")
        entropy_weight: float = opt(0.1, "weight of the entropy term")

    def __init__(self, config: Config):
        bits = config.codebook_size.bit_length() - 1
        if config.codebook_size < 2 or config.codebook_size != 1 << bits:
            raise UserError(f"quantizer.codebook_size got {config.codebook_size}; lfq needs a power of two, 2 or more")
        super().__init__(config, config.codebook_size, bits)
        self.register_buffer("places", 2 ** torch.arange(bits, device="cpu"), persistent=False)

    def lookup(self, codes: Tensor) -> Tensor:
        return (codes[..., None] // self.places % 2 * 2 - 1).float()

    def rows(self, latents: Tensor) -> Tensor:
        """latents (B,e,H,W) -> what is compared with the codes, fp32 (B*H*W,e): images, then rows, then columns."""
        return to_rows(latents)

    def perturb(self, latents: Tensor, quantized: Quantized, how: Perturbation) -> Tensor:
        """`quantized.vectors`, those of some images replaced by vectors of near codes."""
        return perturb(self, latents, quantized.vectors, quantized.codes, how)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,log2 K,H,W) -> vectors of the same shape, fp32, and codes (B,H*W)."""
        with autocast("none", latents.device):
            rows = to_rows(latents)
            positive = rows.detach() > 0
            codes = (positive * self.places).sum(dim=1)
            nearest = positive.float() * 2 - 1
            losses = {}
            if self.training:
                self._remember(codes)
                losses["commit"] = self.config.commit_weight * (nearest - rows).pow(2).mean()
                if self.config.entropy_weight:
                    # Squared distances but for what all corners have in common.
                    losses["entropy"] = self.config.entropy_weight * entropy_loss(-2 * rows @ self.codebook().t())
            through = rows + (nearest - rows).detach()
            return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), losses)
