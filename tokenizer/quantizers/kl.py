"""No quantization: a diagonal Gaussian per position, as in a variational autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import NO_CODES, Quantized, Quantizer


class DiagonalGaussian(Quantizer):
    """latents (B,2e,H,W), mean and log variance -> vectors (B,e,H,W): a sample in training, the mean in evaluation.

    Loss: kl = weight * mean over images of 0.5 * sum (mean^2 + variance - 1 - log variance). There are no codes:
    `codebook_size` and `arrange` raise UserError.
    Source: Kingma and Welling 2013; latent diffusion (Rombach et al. 2022).
    """

    @dataclass
    class Config:
        dim: int = opt(8, "channels e of a vector")
        weight: float = opt(5e-12, "factor of the KL term, which sums over an image while pixel losses are means")

    continuous = True

    def __init__(self, config: Config):
        super().__init__(config, config.dim)

    @property
    def latent_dim(self) -> int:
        return 2 * self.codebook_dim

    @property
    def codebook_size(self) -> int:
        raise UserError(NO_CODES)

    def arrange(self, codes: Tensor, height: int, width: int) -> Tensor:
        raise UserError(NO_CODES)

    def forward(self, latents: Tensor) -> Quantized:
        with autocast("none", latents.device):
            mean, log_variance = latents.float().chunk(2, dim=1)
            if not self.training:
                return Quantized(mean, None, {})
            log_variance = log_variance.clamp(-30.0, 20.0)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
            sample = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            return Quantized(sample, None, {"kl": self.config.weight * divergence.mean()})
