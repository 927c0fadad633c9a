"""A transformer over an image's patches and a few latent tokens, as in TiTok's encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from tokenizer.layers.transformer import TransformerConfig, ViTLayer
from tokenizer.layout import Layout


@dataclass
class TokenVitConfig(TransformerConfig):
    """TiTok's small size is width 512, 8 layers, 8 heads; base and large are as named."""

    patch: int = opt(16, "pixels per patch side", low=1)


class TokenVit(nn.Module):
    """Full self-attention over [class token, G*G patch tokens, up to N latent tokens], all with learned positions.

    Source: TiTok (arXiv 2406.07550).
    """

    tokens_1d, any_size, groups = True, False, 1

    def __init__(self, config: TokenVitConfig, image_size: int, layout: Layout):
        super().__init__()
        self.width, layers, heads = config.resolved()
        if image_size % config.patch or layout.redundant:
            raise UserError(
                f"got image_size={image_size}, patch={config.patch}, layout.redundant={layout.redundant}; "
                "expected a multiple of the patch and no redundant tokens; change model.image_size or model.layout"
            )
        self.grid, self.layout = image_size // config.patch, layout
        self.class_embedding = self.table(1)
        self.positional_embedding = self.table(1 + self.grid**2)
        self.latent_token_positional_embedding = self.table(layout.num_tokens)
        self.ln_pre = nn.LayerNorm(self.width)
        self.transformer = nn.ModuleList(ViTLayer(self.width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(self.width)

    def table(self, *length: int) -> nn.Parameter:
        """Learned vectors (*length, D), normal of deviation 1/sqrt(D)."""
        return nn.Parameter(nn.init.normal_(torch.empty(*length, self.width), std=self.width**-0.5))

    def run(self, patches: Tensor, latents: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """patches (B,G*G,D), latents (B,n,D), hidden (B,n) bool = not attended -> both before the last norm."""
        placed = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        latents = latents + self.latent_token_positional_embedding[: latents.shape[1]]
        x = self.ln_pre(torch.cat([placed + self.positional_embedding, latents], dim=1))
        if hidden is not None:
            hidden = nn.functional.pad(hidden, (placed.shape[1], 0))
        for layer in self.transformer:
            x = layer(x, hidden)
        return x[:, 1 : placed.shape[1]], x[:, placed.shape[1] :]
