"""GigaTok's 1D encoder: a CNN, then a Q-former whose queries turn the CNN's map into a token sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokenizer.encoders.cnn import CnnConfig, CnnEncoder
from tokenizer.layers.query_init import multi_level_pooling
from tokenizer.layers.resnet import init_weights
from tokenizer.layers.transformer import QFormerLayer, TransformerConfig, position_table
from tokenizer.layout import Layout


class QFormerEncoder(nn.Module):
    """map (B,C,G,G) -> latents (B,C,1,N+M)."""

    def __init__(self, config: TransformerConfig, grid: int, z_channels: int, layout: Layout):
        super().__init__()
        width, layers, heads = config.resolved()
        self.layout = layout
        self.positional_embedding = position_table(grid * grid, width)
        self.latent_token_positional_embedding = position_table(layout.num_tokens, width)
        if layout.redundant:
            self.latent_token_positional_embedding_comp = position_table(layout.redundant, width)
        self.encoder_embed = nn.Linear(z_channels, width)
        self.ln_pre = nn.LayerNorm(z_channels)
        self.global_proj = nn.Linear(width, width)
        self.transformer = nn.ModuleList(QFormerLayer(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 1)
        self.register_buffer("pooling", multi_level_pooling(layout.num_tokens, grid), persistent=False)
        init_weights(self)

    def queries(self, memory: Tensor) -> Tensor:
        """Initial queries (B,N+M,D) before positions are added: means of the memory over ever finer blocks.

        The M padding queries repeat the last M of the N queries. Source: ReTok, redundant token padding.
        """
        pooled = torch.einsum("np,bpd->bnd", self.pooling.to(memory.dtype), memory)
        if self.layout.redundant:
            pooled = torch.cat([pooled, pooled[:, -self.layout.redundant :]], dim=1)
        return self.global_proj(pooled)

    def forward(self, spatial: Tensor) -> Tensor:
        return self.project(self.features(spatial))

    def features(self, spatial: Tensor) -> Tensor:
        """Token features (B,N+M,D) after the last norm."""
        memory = self.encoder_embed(self.ln_pre(spatial.flatten(2).transpose(1, 2)))
        tables = [self.latent_token_positional_embedding]
        if self.layout.redundant:
            tables.append(self.latent_token_positional_embedding_comp)
        query_pos, memory_pos = torch.cat(tables).transpose(0, 1), self.positional_embedding.transpose(0, 1)
        tokens = self.queries(memory)
        for layer in self.transformer:
            tokens = layer(tokens, memory, query_pos, memory_pos)
        return self.ln_post(tokens)

    def project(self, features: Tensor) -> Tensor:
        return self.conv_out(features.transpose(1, 2).unsqueeze(2))


class Hybrid1dEncoder(nn.Module):
    """images (B,3,H,W) -> (latents (B,z_channels,1,N+M), map (B,z_channels,G,G))."""

    @dataclass
    class Config:
        cnn: CnnConfig = field(default_factory=CnnConfig)
        transformer: TransformerConfig = field(default_factory=TransformerConfig)

    tokens_1d, any_size, groups = True, False, 1
    cnn_class, transformer_class = CnnEncoder, QFormerEncoder

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.cnn = self.cnn_class(config.cnn, image_size, z_channels)
        self.grid = self.cnn.grid
        self.transformer = self.transformer_class(config.transformer, self.grid, z_channels, layout)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        spatial = self.cnn(images)
        return self.transformer(spatial), spatial
