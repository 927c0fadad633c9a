"""RobusTok's encoder: a ViT over image patches and learned latent tokens. Its output are the latent tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from tokenizer.layers.vit import Vit, VitConfig
from tokenizer.layout import Layout


class DinoVitEncoder(nn.Module):
    """images (B,3,H,W) -> latents (B,D,P*G,G): P groups of G*G = `layout.num_tokens` latent tokens, group below group.

    P > 1 is for product quantizers. Source: RobusTok (arXiv 2503.08354); XQ-GAN has fewer tokens than patches.
    """

    @dataclass
    class Config(VitConfig):
        groups: int = opt(1, "latent tokens per patch; as many as the product quantizer's groups")

    tokens_1d, any_size = False, False

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.image_grid, self.grid = grids_of(config, image_size, layout)
        if z_channels != config.width:
            raise UserError(f"model.z_channels={z_channels} but the encoder has width={config.width}; set them equal")
        self.groups = config.groups
        self.latent_tokens = nn.Parameter(1e-6 * torch.randn(1, self.groups * self.grid**2, config.width))
        self.register_buffer("levels", level_ids(self.image_grid**2 + 1, *[self.grid**2] * self.groups))
        self.vit = Vit(config, self.image_grid)
        self.level_embedding = level_table(config.width, 1 + self.groups)

    def tokens(self, images: Tensor) -> Tensor:
        """The latent tokens (B,G*G,D) after the last norm."""
        patches = self.vit.place(self.vit.patch_embed(images))
        # Latent tokens get the positions of the patches; the added class token is dropped.
        placed = [self.vit.place(group)[:, 1:] for group in self.latent_tokens.chunk(self.groups, dim=1)]
        latents = torch.cat(placed, dim=1).expand(len(images), -1, -1)
        x = torch.cat([patches, latents], dim=1) + self.level_embedding(self.levels)
        return self.vit.run(x)[:, -latents.shape[1] :]

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images).transpose(1, 2).unflatten(2, (self.groups * self.grid, self.grid))


def grids_of(config: VitConfig, image_size: int, layout: Layout) -> tuple[int, int]:
    """Sides of the grids of patches and of latent tokens. Raises: UserError for numbers that do not fit together."""
    grid = image_size // config.patch
    if image_size % config.patch:
        raise UserError(f"image_size={image_size} is not a multiple of patch={config.patch}; change one of them")
    side = round(layout.num_tokens**0.5)
    if layout.num_tokens != side**2 or layout.redundant:
        raise UserError(
            f"dino_vit has a square of tokens, such as one per patch, {grid**2}; the layout says "
            f"num_tokens={layout.num_tokens}, redundant={layout.redundant}; set layout.num_tokens={grid**2} "
            "and layout.redundant=0"
        )
    return grid, side


def level_ids(*counts: int) -> Tensor:
    """int64 (1, sum of counts): 0 for the image's tokens, then 1, 2, ... for the groups of latent tokens."""
    return torch.cat([torch.full((count,), level, dtype=torch.int64) for level, count in enumerate(counts)])[None]


def level_table(width: int, rows: int = 2) -> nn.Embedding:
    """An embedding for the image's tokens and one for each group of latent tokens."""
    table = nn.Embedding(rows, width)
    nn.init.trunc_normal_(table.weight, std=(1 / (3 * width)) ** 0.5)
    return table
