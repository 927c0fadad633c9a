"""Latent perturbation: some codes are replaced by near ones, to imitate sampling errors of a generator.

Source: RobusTok (arXiv 2503.08354), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import UserError
from common.numerics import autocast, to_device
from tokenizer.quantizers.base import AT_ONCE, CodeQuantizer

NEIGHBOURS = ("latent", "code")


@dataclass
class Perturbation:
    """The perturbation of one step, for B images of L codes.

    chosen: bool (B,) on the CPU, the images to perturb. rate: probability that a code of theirs is redrawn.
    strength: number of nearest codes it is redrawn from, itself included. neighbours: nearest to the "latent" (as in
    RobusTok's code) or to the chosen "code" (as in its paper). The draws are uniforms (B,L) in [0,1) and ranks (B,L),
    int64 below `strength`.
    """

    chosen: Tensor
    rate: float
    strength: int
    uniforms: Tensor
    ranks: Tensor
    neighbours: str = "latent"

    def part(self, columns: slice) -> Perturbation:
        """The same perturbation, restricted to some of the L codes."""
        own = self.uniforms[:, columns], self.ranks[:, columns]
        return Perturbation(self.chosen, self.rate, self.strength, *own, self.neighbours)

    def ranks_of(self, images: Tensor) -> Tensor:
        """For these images, the rank (images,L) of the near code that each code takes; 0 = the nearest, unchanged."""
        return torch.where(self.uniforms[images] > self.rate, 0, self.ranks[images])


def perturb(quantizer: CodeQuantizer, latents: Tensor, vectors: Tensor, codes: Tensor, how: Perturbation) -> Tensor:
    """`vectors` (B,e,H,W), with those of the chosen images replaced by perturbed ones; `codes` (B,H*W).

    Gradients of the perturbed ones pass straight through to the (normalised) latent.

    Raises: UserError unless 1 <= strength <= codebook_size.
    """
    images = to_device(how.chosen.nonzero().flatten(), latents.device)
    if not len(images):
        return vectors
    with autocast("none", latents.device):
        rows = quantizer.rows(latents[images])
        centres = rows.detach() if how.neighbours == "latent" else quantizer.lookup(codes[images]).flatten(0, 1)
        near = nearest_codes(quantizer, centres, how.strength)
        taken = quantizer.lookup(near.gather(1, how.ranks_of(images).reshape(-1, 1))[:, 0])
        perturbed = rows + (taken - rows).detach()
        perturbed = perturbed.unflatten(0, (len(images), *latents.shape[2:])).permute(0, 3, 1, 2)
        return vectors.index_copy(0, images, perturbed.to(vectors.dtype))


@torch.no_grad()
def nearest_codes(quantizer: CodeQuantizer, centres: Tensor, strength: int) -> Tensor:
    """The `strength` codes nearest to each of the centres (n,e), nearest first: int64 (n,strength).

    Raises: UserError unless 1 <= strength <= codebook_size.
    """
    if not 1 <= strength <= quantizer.codebook_size:
        raise UserError(f"perturbation strength is {strength}; expected 1 to codebook_size={quantizer.codebook_size}")
    codebook = quantizer.codebook()
    pieces = centres.split(max(1, AT_ONCE // len(codebook)))
    return torch.cat([torch.cdist(piece, codebook).topk(strength, largest=False).indices for piece in pieces])


def anneal(progress: float, start: float, end: float, end_ratio: float) -> float:
    """1 up to `start`, `end_ratio` from `end` on, linear between; `progress` in their unit (steps or epochs).

    RobusTok's code uses 1 - done * end_ratio in between, with done from 0 to 1. Unless `end_ratio` is 0.5, as in its
    configs, it jumps at the end: with 0.25 from 0.75 to 0.25. This function is continuous and equal to it for 0.5.
    """
    if progress <= start:
        return 1.0
    if progress >= end:
        return end_ratio
    return 1.0 - (1.0 - end_ratio) * (progress - start) / (end - start)
