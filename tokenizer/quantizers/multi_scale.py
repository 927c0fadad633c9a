"""Multi-scale residual quantization: each scale quantizes the residual of the coarser ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.perturbation import Perturbation, nearest_codes
from tokenizer.quantizers.vq import VectorQuantizer


class MultiScaleQuantizer(VectorQuantizer):
    """latents (B,e,G,G) -> vectors of the same shape, codes (B, sum of p*p over the scales p), coarsest first.

    At each scale the rest is averaged to p x p, replaced by its nearest codes (by cosine), enlarged (bicubic) and
    smoothed by phi(h) = (h + conv3x3(h)) / 2; the sum of all scales is the result. vq = mean over scales of
    mean (sum so far - sg z)^2, commit = beta * the same towards z. (RobusTok's code does not divide the latter by the
    number of scales.)
    Source: VAR (Tian et al. 2024), algorithm 1.
    """

    needs_grid = True

    @dataclass
    class Config(VectorQuantizer.Config):
        codebook_size: int = opt(4096, "number of codes K, shared by the scales")
        codebook_dim: int = opt(64, "width of a code vector")
        rotation: bool = opt(False, "not built for several scales")
        scales: list[int] = opt([1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "codes per side, coarse to fine; the grid's is last")
        smoothers: int = opt(4, "number of phi; scales share the one nearest in rank; 0 = one for each scale")

    def __init__(self, config: Config):
        super().__init__(config)
        unused = [name for name in ("rotation", "entropy_weight", "refresh_every") if getattr(config, name)]
        if unused:
            raise UserError(f"a multi_scale quantizer does not act on {', '.join(unused)}; leave it out")
        if sorted(config.scales) != config.scales or not config.scales or config.scales[0] < 1:
            raise UserError(f"quantizer.scales got {config.scales}; expected sides from coarse to fine, as [1,2,4]")
        count, dim = config.smoothers or len(config.scales), self.codebook_dim
        if not 1 <= count <= len(config.scales):
            raise UserError(f"quantizer.smoothers got {count}; expected 0 to {len(config.scales)} (scales)")
        self.scales = config.scales
        self.smoothers = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(count))

    def num_codes(self, cells: int) -> int:
        if self.scales[-1] ** 2 != cells:
            raise UserError(f"quantizer.scales ends with {self.scales[-1]}; expected the grid's side, {cells**0.5:.0f}")
        return sum(side**2 for side in self.scales)

    def smoother(self, number: int) -> nn.Module:
        """The phi of scale `number`: that whose tick is nearest to its place between the first scale and the last."""
        count = len(self.smoothers)
        if count == len(self.scales):
            return self.smoothers[number]
        margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
        ticks = torch.linspace(margin, 1 - margin, count)
        return self.smoothers[int((ticks - number / max(1, len(self.scales) - 1)).abs().argmin())]

    def drawn(self, codes: Tensor, number: int) -> Tensor:
        """The contribution (B,e,G,G) of the codes (B,p*p) of one scale."""
        side, full = self.scales[number], self.scales[-1]
        maps = F.embedding(codes, self.embedding.weight.float()).transpose(1, 2).unflatten(2, (side, side))
        if side != full:
            maps = F.interpolate(maps, (full, full), mode="bicubic")
        return 0.5 * maps + 0.5 * self.smoother(number)(maps)

    def arrange(self, codes: Tensor, height: int, width: int) -> Tensor:
        split = codes.split([side**2 for side in self.scales], dim=1)
        with autocast("none", codes.device):
            return sum(self.drawn(own, number) for number, own in enumerate(split))

    def forward(self, latents: Tensor, kept_scales: Tensor | None = None) -> Quantized:
        """`kept_scales` int64 (B,): how many scales each image has (codebook drop); None = all."""
        with autocast("none", latents.device):
            target = latents.float()
            rest, total = target.detach(), torch.zeros_like(target)
            codes, losses = [], {"vq": 0.0, "commit": 0.0}
            kept = target.new_full((len(latents),), len(self.scales)) if kept_scales is None else kept_scales
            for number, side in enumerate(self.scales):
                shown = rest if side == self.scales[-1] else F.interpolate(rest, (side, side), mode="area")
                codes.append(self.nearest(shown).unflatten(0, (len(latents), -1)))
                here = (number < kept).float()[:, None, None, None]
                added = here * self.drawn(codes[-1], number)
                total, rest = total + added, rest - added.detach()
                share = here.sum().clamp(min=1) * target[0].numel()
                losses["vq"] += (here * (total - target.detach())).square().sum() / share
                losses["commit"] += (here * (total.detach() - target)).square().sum() / share
            if self.training:
                self._remember(torch.cat(codes, dim=1).flatten())
                losses = {name: value / len(self.scales) for name, value in losses.items()}
                losses["commit"] = self.config.commit_weight * losses["commit"]
            vectors = target + (total - target).detach()
            return Quantized(vectors, torch.cat(codes, dim=1), losses if self.training else {})

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The nearest code to each position of (B,e,H,W), int64 (B*H*W,)."""
        return nearest_codes(self, self.rows(latents), 1)[:, 0]

    def perturb(self, latents: Tensor, quantized: Quantized, how: Perturbation) -> Tensor:
        """Replace codes of all scales by codes near to them."""
        if how.neighbours != "code":
            raise UserError("several scales have no latent of their own; set regularizers.perturbation.neighbours=code")
        images = how.chosen.nonzero().flatten()
        if not len(images):
            return quantized.vectors
        codes = quantized.codes[images]
        near = nearest_codes(self, self.codebook()[codes.flatten()], how.strength)
        taken = near.gather(1, how.ranks_of(images).reshape(-1, 1)).view_as(codes)
        rows = latents[images].float()
        perturbed = rows + (self.arrange(taken, *latents.shape[2:]) - rows).detach()
        return quantized.vectors.index_copy(0, images.to(latents.device), perturbed)


