"""GigaTok's 2D encoder: a CNN, then a plain transformer over the positions of its map."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from common.config import opt
from tokenizer.encoders.cnn import CnnConfig, CnnEncoder
from tokenizer.layers.resnet import init_weights
from tokenizer.layers.transformer import QFormerLayer, TransformerConfig, ViTLayer, position_table
from tokenizer.layout import Layout


@dataclass
class GridTransformerConfig(TransformerConfig):
    """A transformer over a grid of tokens."""

    qformer: bool = opt(False, "Q-former layers that attend to their own input, as in the released S-S grid tokenizer")


class GridTransformer(nn.Module):
    """map (B,C,G,G) -> tokens (B,G*G,D).

    A Q-former layer takes the stream as it enters the layer, unnormalised, as the memory of its cross-attention.
    """

    def __init__(self, config: GridTransformerConfig, grid: int, z_channels: int, embed_name: str):
        super().__init__()
        width, layers, heads = config.resolved()
        self.grid, self.embed_name, self.qformer = grid, embed_name, config.qformer
        self.positional_embedding = position_table(grid * grid, width)
        setattr(self, embed_name, nn.Linear(z_channels, width))
        self.ln_pre = nn.LayerNorm(z_channels)
        layer = QFormerLayer if config.qformer else ViTLayer
        self.transformer = nn.ModuleList(layer(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def tokens(self, spatial: Tensor, depth: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Features after the last layer and, if asked for, after layer `depth` (1-based)."""
        h = getattr(self, self.embed_name)(self.ln_pre(spatial.flatten(2).transpose(1, 2)))
        positions = self.positional_embedding.transpose(0, 1)
        if not self.qformer:
            h = h + positions
        inner = None
        for number, layer in enumerate(self.transformer, start=1):
            h = layer(h, h, positions, positions) if self.qformer else layer(h)
            if number == depth:
                inner = h
        return h, inner

    def to_map(self, tokens: Tensor) -> Tensor:
        return self.ln_post(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))


class Hybrid2dEncoder(nn.Module):
    """images (B,3,H,W) -> (latents (B,z_channels,G,G), map (B,z_channels,G,G))."""

    @dataclass
    class Config:
        cnn: CnnConfig = field(default_factory=CnnConfig)
        transformer: GridTransformerConfig = field(default_factory=GridTransformerConfig)

    tokens_1d, any_size, groups = False, False, 1

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.cnn = CnnEncoder(config.cnn, image_size, z_channels)
        self.grid = self.cnn.grid
        self.transformer = GridTransformerEncoder(config.transformer, self.grid, z_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        spatial = self.cnn(images)
        return self.transformer(spatial), spatial


class GridTransformerEncoder(GridTransformer):
    def __init__(self, config: GridTransformerConfig, grid: int, z_channels: int):
        super().__init__(config, grid, z_channels, "encoder_embed")
        self.conv_out = nn.Conv2d(self.ln_post.normalized_shape[0], z_channels, 1)
        init_weights(self)

    def forward(self, spatial: Tensor) -> Tensor:
        return self.conv_out(self.to_map(self.tokens(spatial)[0]))

    def features(self, spatial: Tensor) -> Tensor:
        """Token features (B,G*G,D) after the last norm."""
        return self.ln_post(self.tokens(spatial)[0])
