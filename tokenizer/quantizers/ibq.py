"""Index backpropagation quantization: gradients reach all codes through the distribution over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import AT_ONCE, Quantized, to_maps
from tokenizer.quantizers.vq import VectorQuantizer, entropy_loss


class IndexBackpropagationQuantizer(VectorQuantizer):
    """The code with the largest inner product, computed in fp32; codes and latents keep their length.

    Losses, with q the chosen code: index = mean (q' - z)^2, where q' has the value of q and the gradient of the
    expected code; vq = codebook_weight * mean (q - sg z)^2; commit = commit_weight * mean (sg q - z)^2; entropy as in
    `vq`, of the inner products. Source: IBQ (arXiv 2412.02692), eq. 4 to 7.
    """

    @dataclass
    class Config(VectorQuantizer.Config):
        codebook_dim: int = opt(256, "width of a code vector")
        l2_norm: bool = opt(False, "latents and codes are unit vectors")
        codebook_weight: float = opt(0.25, "weight of the codebook term")
        commit_weight: float = opt(1.0, "weight of the commitment term")
        entropy_weight: float = opt(0.05, "weight of the entropy term; >0 keeps the codebook in use")
        rotation: bool = opt(False, "not built for ibq")

    def __init__(self, config: Config):
        if config.rotation or config.refresh_every:
            raise UserError("an ibq quantizer does not act on rotation and refresh_every; leave them out")
        super().__init__(config)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,e,H,W) -> vectors of the same shape and dtype fp32, codes (B,H*W)."""
        with autocast("none", latents.device):
            rows, codebook = self.rows(latents), self.codebook()
            if not self.training:
                pieces = rows.split(max(1, AT_ONCE // len(codebook)))
                codes = torch.cat([(piece @ codebook.t()).argmax(dim=1) for piece in pieces])
                return Quantized(to_maps(self.lookup(codes), latents), codes.unflatten(0, (len(latents), -1)), {})
            logits = rows @ codebook.t()
            codes = logits.detach().argmax(dim=1)
            self._remember(codes)
            probabilities = logits.softmax(dim=1)
            one_hot = torch.zeros_like(logits).scatter_(1, codes[:, None], 1.0)
            through = (one_hot - probabilities.detach() + probabilities) @ codebook
            nearest = self.lookup(codes)
            losses = {
                "index": (through - rows).pow(2).mean(),
                "vq": self.config.codebook_weight * (nearest - rows.detach()).pow(2).mean(),
                "commit": self.config.commit_weight * (nearest.detach() - rows).pow(2).mean(),
            }
            if self.config.entropy_weight:
                losses["entropy"] = self.config.entropy_weight * entropy_loss(-logits)
            return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), losses)
