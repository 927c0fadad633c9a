"""Multi-scale residual quantization: each scale quantizes the residual of the coarser ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from common.numerics import autocast
from tokenizer.quantizers.base import CodeQuantizer, Quantized, to_rows
from tokenizer.quantizers.lfq import LookupFreeQuantizer
from tokenizer.quantizers.perturbation import Perturbation, nearest_codes
from tokenizer.quantizers.vq import VectorQuantizer

SCALES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]


@dataclass
class ScalesConfig:
    scales: list[int] = opt(SCALES, "codes per side, coarse to fine; the grid's is last")
    smoothers: int = opt(4, "number of phi; scales share the one nearest in rank; 0 = one for each scale")
    smoothing: float = opt(0.5, "share of the convolution in phi; 0 = no phi")


class ResidualScales(CodeQuantizer):
    """latents (B,e,G,G) -> vectors of the same shape, codes (B, sum of p*p over the scales p), coarsest first.

    At each scale the rest is averaged to p x p, replaced by codes, enlarged (bicubic) and smoothed by
    phi(h) = (1 - s) h + s conv3x3(h), s = `smoothing`; the sum of all scales is the result. vq = mean over scales of
    mean (sum so far - sg z)^2, commit = beta * the same towards z. (RobusTok and XQ-GAN do not divide the latter by the
    number of scales: their `commit_weight` is 0.25 times that number here.)
    Source: VAR (Tian et al. 2024), algorithm 1.
    """

    needs_grid = True

    def make_scales(self, config: ScalesConfig) -> None:
        """Called by `__init__`. Raises: UserError for scales or smoothers that make no sense."""
        if sorted(config.scales) != config.scales or not config.scales or config.scales[0] < 1:
            raise UserError(f"quantizer.scales got {config.scales}; expected sides from coarse to fine, as [1,2,4]")
        count, dim = config.smoothers or len(config.scales), self.codebook_dim
        if not 1 <= count <= len(config.scales):
            raise UserError(f"quantizer.smoothers got {count}; expected 0 to {len(config.scales)} (scales)")
        self.scales = [(side, side) for side in config.scales]
        count = count if config.smoothing else 0
        self.smoothers = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(count))

    def num_codes(self, cells: int) -> int:
        if self.scales[-1][0] ** 2 != cells:
            raise UserError(
                f"quantizer.scales ends with {self.scales[-1][0]}; expected the grid's side, {cells**0.5:.0f}"
            )
        return sum(height * width for height, width in self.scales)

    def smooth(self, maps: Tensor, number: int) -> Tensor:
        """The phi of scale `number`: that whose tick is nearest to its place between the first scale and the last."""
        count, share = len(self.smoothers), self.config.smoothing
        if not count:
            return maps
        if count != len(self.scales):
            margin = 1 / (3 * count) if count == 4 else 1 / (2 * count)
            ticks = torch.linspace(margin, 1 - margin, count, dtype=torch.float64)
            number = int((ticks - number / max(1, len(self.scales) - 1)).abs().argmin())
        return (1 - share) * maps + share * self.smoothers[number](maps)

    def scale_rows(self, codes: Tensor, number: int) -> Tensor:
        """The vectors (B,p*p,e) that codes (B,p*p) of scale `number` stand for before they are enlarged."""
        raise TypeError(f"{type(self).__name__} defines no scale_rows")

    def drawn(self, codes: Tensor, number: int) -> Tensor:
        """The contribution (B,e,G,G) of the codes (B,p*p) of one scale."""
        size, full = self.scales[number], self.scales[-1]
        maps = self.scale_rows(codes, number).transpose(1, 2).unflatten(2, size)
        if size != full:
            maps = F.interpolate(maps, full, mode="bicubic")
        return self.smooth(maps, number)

    def arrange(self, codes: Tensor, height: int, width: int) -> Tensor:
        split = codes.split([height * width for height, width in self.scales], dim=1)
        with autocast("none", codes.device):
            return sum(self.drawn(own, number) for number, own in enumerate(split))

    def prepared(self, latents: Tensor) -> Tensor:
        """What is quantized, fp32."""
        return latents.float()

    def scale_loss(self, rest: Tensor, here: Tensor, number: int) -> dict[str, Tensor]:
        """Further losses of one scale, of the rest (B,e,G,G) before it; `here` (B,) is 1.0 for images that have it."""
        return {}

    def forward(self, latents: Tensor, kept_scales: Tensor | None = None) -> Quantized:
        """`kept_scales` int64 (B,): how many scales each image has (codebook drop); None = all."""
        with autocast("none", latents.device):
            target = self.prepared(latents)
            rest, total = target.detach(), torch.zeros_like(target)
            codes, losses = [], {"vq": 0.0, "commit": 0.0}
            kept = target.new_full((len(latents),), len(self.scales)) if kept_scales is None else kept_scales
            for number, size in enumerate(self.scales):
                shown = rest if size == self.scales[-1] else F.interpolate(rest, size, mode="area")
                codes.append(self.nearest(shown).unflatten(0, (len(latents), -1)))
                present = (number < kept).float()
                extra = self.scale_loss(target - total.detach(), present, number) if self.training else {}
                here = present[:, None, None, None]
                added = self.drawn(codes[-1], number)
                total, rest = total + here * added, rest - added.detach()
                share = here.sum().clamp(min=1) * target[0].numel()
                losses["vq"] += (here * (total - target.detach())).square().sum() / share
                losses["commit"] += (here * (total.detach() - target)).square().sum() / share
                losses |= {name: losses.get(name, 0.0) + value for name, value in extra.items()}
            if self.training:
                self._remember(torch.cat(codes, dim=1).flatten())
                losses = {name: value / len(self.scales) for name, value in losses.items()}
                losses["commit"] = self.config.commit_weight * losses["commit"]
            vectors = target + (total - target).detach()
            return Quantized(vectors, torch.cat(codes, dim=1), losses if self.training else {})

    def nearest(self, latents: Tensor) -> Tensor:
        """The code of each position of (B,e,H,W), int64 (B*H*W,)."""
        raise TypeError(f"{type(self).__name__} defines no nearest")

    def perturb(self, latents: Tensor, quantized: Quantized, how: Perturbation) -> Tensor:
        """Replace codes of all scales by codes near to them."""
        if how.neighbours != "code":
            raise UserError("several scales have no latent of their own; set regularizers.perturbation.neighbours=code")
        images = how.chosen.nonzero().flatten()
        if not len(images):
            return quantized.vectors
        codes = quantized.codes[images]
        near = nearest_codes(self, self.lookup(codes.flatten()), how.strength)
        taken = near.gather(1, how.ranks_of(images).reshape(-1, 1)).view_as(codes)
        rows = self.prepared(latents[images])
        perturbed = rows + (self.arrange(taken, *latents.shape[2:]) - rows).detach()
        return quantized.vectors.index_copy(0, images.to(latents.device), perturbed)


class MultiScaleQuantizer(ResidualScales, VectorQuantizer):
    """`ResidualScales` with the nearest rows of a codebook, by cosine (`l2_norm`) or distance.

    Rows are compared by their direction where `l2_norm`, but summed as they are stored.
    """

    @dataclass
    class Config(ScalesConfig, VectorQuantizer.Config):
        codebook_size: int = opt(4096, "number of codes K, shared by the scales")
        codebook_dim: int = opt(64, "width of a code vector")
        l2_norm: bool = opt(True, "nearest by cosine instead of by distance; VAR: false")
        rotation: bool = opt(False, "not built for several scales")

    def __init__(self, config: Config):
        super().__init__(config)
        unused = [name for name in ("rotation", "entropy_weight", "refresh_every") if getattr(config, name)]
        if unused:
            raise UserError(f"a multi_scale quantizer does not act on {', '.join(unused)}; leave it out")
        self.make_scales(config)

    def scale_rows(self, codes: Tensor, number: int) -> Tensor:
        return F.embedding(codes, self.embedding.weight.float())

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        return nearest_codes(self, self.rows(latents), 1)[:, 0]


class BinaryMultiScaleQuantizer(ResidualScales, LookupFreeQuantizer):
    """`ResidualScales` with one bit a channel: the signs of the rest of unit latents, times `scaler` of the scale.

    entropy = weight * mean over scales of (mean entropy of a position's bits - entropy of their mean), a bit's
    probability being sigmoid(-4 rest * scaler). Source: XQ-GAN (arXiv 2412.01762), binary spherical quantization.
    """

    @dataclass
    class Config(ScalesConfig, LookupFreeQuantizer.Config):
        codebook_size: int = opt(4096, "number of codes K, a power of two; a vector has log2 K channels")

    def __init__(self, config: Config):
        super().__init__(config)
        self.make_scales(config)
        self.register_buffer("scaler", torch.full((len(self.scales),), self.codebook_dim**-0.5))

    def prepared(self, latents: Tensor) -> Tensor:
        return F.normalize(latents.float(), dim=1)

    def scale_rows(self, codes: Tensor, number: int) -> Tensor:
        return self.lookup(codes) * self.scaler[number]

    def nearest(self, latents: Tensor) -> Tensor:
        return ((to_rows(latents) > 0) * self.places).sum(dim=1)

    def scale_loss(self, rest: Tensor, here: Tensor, number: int) -> dict[str, Tensor]:
        if not self.config.entropy_weight:
            return {}
        probability = torch.sigmoid(-4 * to_rows(rest) * self.scaler[number]).unflatten(0, (len(rest), -1))
        shares = self.shares(here)[:, None]
        each = bit_entropy(probability).sum(dim=2).mean(dim=1, keepdim=True)
        entropy = (shares * each).sum() - bit_entropy((shares * probability.mean(dim=1)).sum(dim=0)).sum()
        return {"entropy": self.config.entropy_weight * entropy / here.mean().clamp(min=1 / len(here))}

    @staticmethod
    def shares(here: Tensor) -> Tensor:
        """Each image's share (B,) in the means. (XQ-GAN indexes with zeros and ones: only the first two images.)"""
        return here / here.sum().clamp(min=1)


def bit_entropy(probability: Tensor) -> Tensor:
    """Entropy of a bit, in nats."""
    return -sum(each * torch.log(each + 1e-8) for each in (probability, 1 - probability))
