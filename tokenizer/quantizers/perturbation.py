"""Latent perturbation: some codes are swapped for near ones, as a generator's mistakes would.

Source: RobusTok (arXiv 2503.08354), section 3; spec robustok 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from tokenizer.quantizers.vq import VectorQuantizer


def perturb(
    quantizer: VectorQuantizer, latents: Tensor, vectors: Tensor, chosen: Tensor, rate: float, strength: int,
    uniforms: Tensor, ranks: Tensor,
) -> Tensor:
    """`vectors` (B,e,H,W), with those of the images `chosen` (B,) bool replaced by perturbed ones.

    A token of a chosen image takes, where its uniform number is at most `rate`, the code that is its `ranks`-th
    nearest (0 = the nearest) among the `strength` nearest to its latent; else the nearest. `uniforms` and `ranks`
    (B*H*W,), the latter int64 below `strength`, run over images, rows, columns. Gradients pass straight through to
    the (normalised) latent.

    Raises: UserError unless 1 <= strength <= codebook_size.
    """
    if not 1 <= strength <= quantizer.codebook_size:
        raise UserError(f"perturbation strength is {strength}; expected 1 to codebook_size={quantizer.codebook_size}")
    rows = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
    if quantizer.config.l2_norm:
        rows = F.normalize(rows, dim=-1)
    with torch.no_grad():
        near = torch.cdist(rows, quantizer.codebook()).topk(strength, largest=False).indices
        codes = near.gather(1, torch.where(uniforms > rate, 0, ranks)[:, None])[:, 0]
        taken = quantizer.lookup(codes)
    perturbed = (rows + (taken - rows).detach()).unflatten(0, (len(latents), *latents.shape[2:])).permute(0, 3, 1, 2)
    return torch.where(chosen[:, None, None, None], perturbed, vectors)


def anneal(progress: float, start: float, end: float, end_ratio: float) -> float:
    """1 up to `start`, `end_ratio` from `end` on, linear between; `progress` in their unit (epochs, or a share).

    RobusTok's own line, 1 - done * end_ratio, reaches `end_ratio` only where that is 0.5, as it is in its configs.
    """
    if progress <= start:
        return 1.0
    if progress >= end:
        return end_ratio
    return 1.0 - (1.0 - end_ratio) * (progress - start) / (end - start)
