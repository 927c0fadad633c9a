"""Latent perturbation: some codes are swapped for near ones, as a generator's mistakes would.

Source: RobusTok (arXiv 2503.08354), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import CodeQuantizer

NEIGHBOURS = ("latent", "code")


@dataclass
class Perturbation:
    """What one step perturbs, for B images of L codes.

    `chosen`: bool (B,), on the CPU, the images it happens to. `rate`: chance that a code of theirs is redrawn.
    `strength`: how many near codes it is redrawn from, its own included. `neighbours`: near to the "latent" (what
    RobusTok's code does) or to the chosen "code" (what its paper says). `uniforms` (B,L) in [0,1) and `ranks` (B,L),
    int64 below `strength`, are the draws.
    """

    chosen: Tensor
    rate: float
    strength: int
    uniforms: Tensor
    ranks: Tensor
    neighbours: str = "latent"

    def part(self, columns: slice) -> Perturbation:
        """The same for some of the L codes."""
        own = self.uniforms[:, columns], self.ranks[:, columns]
        return Perturbation(self.chosen, self.rate, self.strength, *own, self.neighbours)

    def ranks_of(self, images: Tensor) -> Tensor:
        """Which of the near codes each code of these images takes, (images,L); 0 = the nearest, it stays."""
        return torch.where(self.uniforms[images] > self.rate, 0, self.ranks[images])


def perturb(quantizer: CodeQuantizer, latents: Tensor, vectors: Tensor, codes: Tensor, how: Perturbation) -> Tensor:
    """`vectors` (B,e,H,W), with those of the chosen images replaced by perturbed ones; `codes` (B,H*W).

    Gradients of the perturbed ones pass straight through to the (normalised) latent.

    Raises: UserError unless 1 <= strength <= codebook_size.
    """
    images = how.chosen.nonzero().flatten()
    if not len(images):
        return vectors
    with autocast("none", latents.device):
        rows = quantizer.rows(latents[images])
        centres = rows.detach() if how.neighbours == "latent" else quantizer.lookup(codes[images]).flatten(0, 1)
        near = nearest_codes(quantizer, centres, how.strength)
        taken = quantizer.lookup(near.gather(1, how.ranks_of(images).reshape(-1, 1))[:, 0])
        perturbed = rows + (taken - rows).detach()
        perturbed = perturbed.unflatten(0, (len(images), *latents.shape[2:])).permute(0, 3, 1, 2)
        return vectors.index_copy(0, images.to(vectors.device), perturbed.to(vectors.dtype))


@torch.no_grad()
def nearest_codes(quantizer: CodeQuantizer, centres: Tensor, strength: int) -> Tensor:
    """The `strength` codes nearest to each of the centres (n,e), nearest first: int64 (n,strength)."""
    if not 1 <= strength <= quantizer.codebook_size:
        raise UserError(f"perturbation strength is {strength}; expected 1 to codebook_size={quantizer.codebook_size}")
    return torch.cdist(centres, quantizer.codebook()).topk(strength, largest=False).indices


def anneal(progress: float, start: float, end: float, end_ratio: float) -> float:
    """1 up to `start`, `end_ratio` from `end` on, linear between; `progress` in their unit (steps or epochs).

    RobusTok's own line, 1 - done * end_ratio, reaches `end_ratio` only where that is 0.5, as it is in its configs.
    """
    if progress <= start:
        return 1.0
    if progress >= end:
        return end_ratio
    return 1.0 - (1.0 - end_ratio) * (progress - start) / (end - start)
