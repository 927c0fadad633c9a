"""Vector quantization with a learned, optionally l2-normalised codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist
from common.config import opt
from common.meta import on_meta
from common.numerics import autocast
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_maps, to_rows
from tokenizer.quantizers.perturbation import Perturbation, perturb


class VectorQuantizer(CodeQuantizer):
    """Nearest code by squared distance, in fp32 whatever autocast says.

    Losses: vq = mean (q - sg z)^2, commit = beta * mean (sg q - z)^2, entropy = weight * (mean entropy of a
    position's code distribution - entropy of the mean distribution), softmax of -distance/0.01.
    Source: VQ-VAE; LlamaGen (l2 codebook); rotation trick (Fifty et al. 2024); spec tokenizer 2.1.
    """

    @dataclass
    class Config:
        codebook_size: int = opt(16384, "number of codes K")
        codebook_dim: int = opt(8, "width of a code vector")
        l2_norm: bool = opt(True, "latents and codes are unit vectors")
        commit_weight: float = opt(0.25, "beta")
        entropy_weight: float = opt(0.0, "weight of the entropy term; >0 keeps the codebook in use")
        rotation: bool = opt(True, "rotation trick instead of straight-through gradients")
        refresh_every: int = opt(
            0, "steps after which codes outside the usage window restart at a latent; 0 = never"
        )

    def __init__(self, config: Config):
        super().__init__(config, config.codebook_size, config.codebook_dim)
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / config.codebook_size, 1.0 / config.codebook_size)
        if config.l2_norm and not on_meta():
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)

    def codebook(self) -> Tensor:
        """Code vectors (K,e), fp32."""
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=-1) if self.config.l2_norm else weight

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (...,) -> vectors (...,e)."""
        rows = F.embedding(codes, self.embedding.weight.float())
        return F.normalize(rows, dim=-1) if self.config.l2_norm else rows

    def rows(self, latents: Tensor) -> Tensor:
        """latents (B,e,H,W) -> what is compared with the codes, fp32 (B*H*W,e): images, then rows, then columns."""
        rows = to_rows(latents)
        return F.normalize(rows, dim=-1) if self.config.l2_norm else rows

    def perturb(self, latents: Tensor, quantized: Quantized, how: Perturbation) -> Tensor:
        """`quantized.vectors`, those of some images replaced by vectors of near codes."""
        return perturb(self, latents, quantized.vectors, quantized.codes, how)

    def forward(self, latents: Tensor) -> Quantized:
        """latents (B,e,H,W) -> vectors of the same shape and dtype fp32, codes (B,H*W)."""
        with autocast("none", latents.device):
            rows = self.rows(latents)
            if self.training:
                self._refresh(rows.detach())
            codebook = self.codebook()
            # Half of |row|^2 - |row - code|^2: the order of the distances in one pass over (n,K).
            closeness = torch.addmm(-0.5 * codebook.pow(2).sum(1), rows, codebook.t())
            codes = closeness.detach().argmax(dim=1)
            nearest = self.lookup(codes)
            losses = {}
            if self.training:
                self._remember(codes)
                losses["vq"] = (nearest - rows.detach()).pow(2).mean()
                losses["commit"] = self.config.commit_weight * (nearest.detach() - rows).pow(2).mean()
                if self.config.entropy_weight:
                    losses["entropy"] = self.config.entropy_weight * entropy_loss(-2 * closeness)
            through = rotate(rows, nearest.detach()) if self.config.rotation else rows + (nearest - rows).detach()
            return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), losses)

    @torch.no_grad()
    def _refresh(self, rows: Tensor) -> None:
        """Move unused codes onto latents of this batch. Source: NesTok, usage-driven codebook refresh."""
        if not self.config.refresh_every or self.step == 0 or self.step % self.config.refresh_every:
            return
        dead = (self.seen() == 0).nonzero().flatten()
        spread = torch.linspace(0, len(rows) - 1, len(dead), device=rows.device).long()
        fresh = dist.from_main(rows[spread]).to(self.embedding.weight.dtype)
        # This writes weights before the loss is known, so latents that are not finite must not get in here.
        self.embedding.weight[dead] = torch.where(torch.isfinite(fresh), fresh, self.embedding.weight[dead])


def entropy_loss(distances: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy per position minus entropy of the mean over all positions of all ranks; distances (n,K).

    Source: MaskGIT/MAGVIT-v2; the 1e-5 inside the logarithms is GigaTok's.
    """
    logits = -distances / temperature
    probabilities = F.softmax(logits, dim=-1)
    per_position = -(probabilities * F.log_softmax(logits + 1e-5, dim=-1)).sum(-1).mean()
    mean = dist.all_reduce_sum(probabilities.mean(dim=0)) / dist.size()
    return per_position + (mean * torch.log(mean + 1e-5)).sum()


def rotate(rows: Tensor, codes: Tensor) -> Tensor:
    """Map each row onto its code by a rotation and scaling through which gradients flow; rows, codes (n,e).

    The direction of the row is what is rotated: its length gets no gradient.
    Source: rotation trick, eq. 4 (Fifty et al. 2024); the 1e-6 terms are GigaTok's.
    """
    rows = F.normalize(rows, dim=1)
    norm_rows = rows.detach().norm(dim=1, keepdim=True) + 1e-6
    norm_codes = codes.norm(dim=1, keepdim=True)
    u, q = rows.detach() / norm_rows, codes / (norm_codes + 1e-6)
    w = F.normalize(u + q, dim=1)
    reflected = rows - 2 * (rows * w).sum(1, keepdim=True) * w + 2 * (rows * u).sum(1, keepdim=True) * q
    return reflected * (norm_codes / norm_rows)
