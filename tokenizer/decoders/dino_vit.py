"""RobusTok's decoder: a ViT over one mask token per patch and the code tokens, then a linear layer to pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizer.encoders.dino_vit import grids_of, level_ids, level_table
from tokenizer.layers.vit import Vit, VitConfig
from tokenizer.layout import Layout


class DinoVitDecoder(nn.Module):
    """latents (B,D,G,G) -> images (B,3,H,W). D may differ from the encoder's width. Source: RobusTok."""

    @dataclass
    class Config(VitConfig):
        pass

    tokens_1d, any_size, groups = False, False, 1

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.image_grid, self.grid = grids_of(config, image_size, layout)
        self.patch, self.z_channels = config.patch, config.width
        self.mask_token = nn.Parameter(1e-6 * torch.randn(1, 1, config.width))
        # Mask tokens and code tokens each come with a class token.
        self.register_buffer("levels", level_ids(self.image_grid**2 + 1, self.grid**2 + 1))
        self.vit = Vit(config, self.image_grid, reads_images=False)
        self.level_embedding = level_table(config.width)
        self.to_pixel = nn.Linear(config.width, 3 * config.patch**2)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight whose gradients balance the adversarial loss."""
        return self.to_pixel.weight

    def forward(self, latents: Tensor) -> Tensor:
        codes = latents.flatten(2).transpose(1, 2)
        queries = self.mask_token.expand(codes.shape[0], self.image_grid**2, -1)
        x = torch.cat([self.vit.place(queries), self.vit.place(codes)], dim=1) + self.level_embedding(self.levels)
        patches = self.to_pixel(self.vit.run(x)[:, 1 : 1 + self.image_grid**2])
        # The order within a patch is row, column, colour.
        patches = patches.unflatten(2, (self.patch, self.patch, 3)).unflatten(1, (self.image_grid, self.image_grid))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
