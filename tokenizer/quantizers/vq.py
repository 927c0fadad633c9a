"""Vector quantization with a learned, optionally l2-normalised codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist
from common.config import opt
from common.meta import on_meta
from common.numerics import autocast, torch_generator
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_maps, to_rows
from tokenizer.quantizers.perturbation import Perturbation, perturb


class VectorQuantizer(CodeQuantizer):
    """Nearest code by squared distance, computed in fp32 under autocast, too.

    Losses: vq = codebook_weight * mean (q - sg z)^2, commit = beta * mean (sg q - z)^2, entropy = weight * (mean
    entropy of a position's code distribution - entropy of the mean distribution), softmax of -distance/0.01.
    Source: VQ-VAE; LlamaGen (l2 codebook); rotation trick (Fifty et al. 2024).
    """

    @dataclass
    class Config:
        codebook_size: int = opt(16384, "number of codes K")
        codebook_dim: int = opt(8, "width of a code vector")
        l2_norm: bool = opt(True, "latents and codes are unit vectors")
        codebook_weight: float = opt(1.0, "weight of the codebook term; taming's VQGAN: 0.25, with commit_weight 1")
        commit_weight: float = opt(0.25, "beta")
        entropy_weight: float = opt(0.0, "weight of the entropy term; >0 keeps the codebook in use")
        rotation: bool = opt(True, "rotation trick instead of straight-through gradients")
        refresh_every: int = opt(
            0, "every so many steps, codes that no latent chose since are moved onto latents; 0 = never"
        )

    def __init__(self, config: Config):
        super().__init__(config, config.codebook_size, config.codebook_dim)
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / config.codebook_size, 1.0 / config.codebook_size)
        if config.l2_norm and not on_meta():
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        if config.refresh_every:
            chosen = torch.zeros(config.codebook_size, dtype=torch.bool, device="cpu")
            self.register_buffer("chosen", chosen, persistent=False)  # since the last refresh, by any rank
            self.candidates: list[Tensor] = []  # latents (n,e) of this step, one entry per micro-batch

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
            codebook = self.codebook()
            # Half of |row|^2 - |row - code|^2: the order of the distances in one pass over (n,K).
            closeness = torch.addmm(-0.5 * codebook.pow(2).sum(1), rows, codebook.t())
            codes = closeness.detach().argmax(dim=1)
            nearest = self.lookup(codes)
            losses = {}
            if self.training:
                self._remember(codes)
                if self._refreshes():
                    self.candidates.append(rows.detach())
                losses["vq"] = self.config.codebook_weight * (nearest - rows.detach()).pow(2).mean()
                losses["commit"] = self.config.commit_weight * (nearest.detach() - rows).pow(2).mean()
                if self.config.entropy_weight:
                    losses["entropy"] = self.config.entropy_weight * entropy_loss(-2 * closeness)
            through = rotate(rows, nearest.detach()) if self.config.rotation else rows + (nearest - rows).detach()
            return Quantized(to_maps(through, latents), codes.unflatten(0, (len(latents), -1)), losses)

    def _record(self, codes: Tensor) -> None:
        self._mark(codes)
        super()._record(codes)

    def _mark(self, codes: Tensor) -> None:
        if self.config.refresh_every:
            self.chosen[codes] = True

    def _refreshes(self) -> bool:
        """Whether the codebook is refreshed at the end of this step."""
        every = self.config.refresh_every
        return self.training and every > 0 and (self.step + 1) % every == 0

    @torch.no_grad()
    def refresh(self, optimizer: torch.optim.Optimizer, average: VectorQuantizer | None, skipped: Tensor) -> None:
        """Move each code that was not chosen since the last refresh onto a latent of this step.

        The latents are drawn from the global batch, in the same way for any number of ranks. The moved rows of the
        weight average follow, and their optimizer moments start at zero. Source: NesTok, usage-driven codebook refresh.
        """
        if not self._refreshes():
            return
        if skipped.item():
            self.candidates.clear()
            return
        rows = torch.cat(dist.all_gather(torch.cat(self.candidates)))
        rows = rows[torch.isfinite(rows).all(dim=1)]
        unused = (~self.chosen).nonzero().flatten()
        draws = torch_generator(self.step, "refresh")
        picks = torch.randperm(len(rows), generator=draws)[: len(unused)]
        unused = unused[torch.randperm(len(unused), generator=draws)[: len(picks)].to(unused.device)]
        fresh = rows[picks.to(rows.device)]
        moments = optimizer.state.get(self.embedding.weight, {}).values()
        for table in (self.embedding.weight, *([average.embedding.weight] if average else [])):
            table[unused] = fresh.to(table.dtype)
        for moment in moments:
            if moment.shape == self.embedding.weight.shape:
                moment[unused] = 0
        self.chosen.zero_()
        self.candidates.clear()


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
