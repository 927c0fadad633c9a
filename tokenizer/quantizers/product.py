"""Product quantization: several codes per position, each from a codebook of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.config import build, opt, part
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.perturbation import Perturbation


class ProductQuantizer(Quantizer):
    """latents (B,e,P*H,W), group below group -> vectors (B,P*e,H,W) and codes (B,P*L), group after group.

    Losses and usage are means over the groups. The encoder makes the groups (`encoder.groups`).
    Source: ImageFolder (Li et al. 2024), XQ-GAN.
    """

    @dataclass
    class Config:
        groups: int = opt(2, "codes per position P")
        part: dict[str, Any] = part("tokenizer.quantizers:QUANTIZERS", "of each group", {"name": "vq_hits"})

    def __init__(self, config: Config):
        parts = [build("tokenizer.quantizers:QUANTIZERS", config.part) for _ in range(config.groups)]
        super().__init__(config, config.groups * parts[0].codebook_dim)
        self.parts, self.groups = nn.ModuleList(parts), config.groups
        self.codebook_size, self.needs_grid = parts[0].codebook_size, parts[0].needs_grid

    @property
    def latent_dim(self) -> int:
        return self.parts[0].latent_dim

    def num_codes(self, cells: int) -> int:
        return self.groups * self.parts[0].num_codes(cells)

    def usage(self) -> Tensor:
        """Share of the codebooks in use lately."""
        return torch.stack([part.usage() for part in self.parts]).mean()

    def refresh(
        self, optimizer: torch.optim.Optimizer, average: ProductQuantizer | None, skipped: Tensor
    ) -> None:
        for index, inner in enumerate(self.parts):
            inner.refresh(optimizer, average.parts[index] if average else None, skipped)

    def arrange(self, codes: Tensor, height: int, width: int) -> Tensor:
        """codes (B,P*L) -> vectors (B,P*e,H,W)."""
        split = zip(self.parts, codes.chunk(self.groups, dim=1), strict=True)
        return torch.cat([part.arrange(own, height, width) for part, own in split], dim=1)

    def forward(self, latents: Tensor, **options: Any) -> Quantized:
        done = []
        for inner, own in zip(self.parts, latents.chunk(self.groups, dim=2), strict=True):
            inner.step = self.step
            done.append(inner(own, **options))
        losses = {name: sum(each.losses[name] for each in done) / self.groups for name in done[0].losses}
        vectors, codes = ([getattr(each, name) for each in done] for name in ("vectors", "codes"))
        return Quantized(torch.cat(vectors, dim=1), torch.cat(codes, dim=1), losses)

    def perturb(self, latents: Tensor, quantized: Quantized, how: Perturbation) -> Tensor:
        """Perturb every group, each with its own draws."""
        rows = [latents.chunk(self.groups, dim=2), quantized.vectors.chunk(self.groups, dim=1)]
        rows.append(quantized.codes.chunk(self.groups, dim=1))
        size, perturbed = quantized.codes.shape[1] // self.groups, []
        for group, (inner, own, vectors, codes) in enumerate(zip(self.parts, *rows, strict=True)):
            columns = slice(group * size, (group + 1) * size)
            perturbed.append(inner.perturb(own, Quantized(vectors, codes, {}), how.part(columns)))
        return torch.cat(perturbed, dim=1)
