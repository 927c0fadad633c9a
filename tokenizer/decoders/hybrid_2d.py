"""GigaTok's 2D decoder: a plain transformer over the token grid, then a CNN."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from tokenizer.decoders.cnn import CnnDecoder, CnnDecoderConfig
from tokenizer.decoders.hybrid_1d import DecoderFeatures, SemanticHeadConfig, semantic_head
from tokenizer.encoders.hybrid_2d import GridTransformer, GridTransformerConfig
from tokenizer.layers.resnet import init_weights
from tokenizer.layout import Layout


class Hybrid2dDecoder(nn.Module):
    """latents (B,z_channels,G,G) -> images (B,3,H,W)."""

    @dataclass
    class Config:
        cnn: CnnDecoderConfig = field(default_factory=CnnDecoderConfig)
        transformer: GridTransformerConfig = field(default_factory=GridTransformerConfig)
        semantic_head: SemanticHeadConfig | None = field(default_factory=SemanticHeadConfig)

    tokens_1d, any_size, groups = False, False, 1

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.cnn = CnnDecoder(config.cnn, image_size, z_channels)
        self.transformer = GridTransformerDecoder(config, image_size // config.cnn.stride, z_channels)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.cnn.last_layer

    def forward(self, latents: Tensor) -> tuple[Tensor, DecoderFeatures]:
        features = self.transformer(latents)
        return self.cnn(features.spatial), features


class GridTransformerDecoder(GridTransformer):
    def __init__(self, config: Hybrid2dDecoder.Config, grid: int, z_channels: int):
        super().__init__(config.transformer, grid, z_channels, "decoder_embed")
        width = self.ln_post.normalized_shape[0]
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.semantic_depth = config.semantic_head.depth if config.semantic_head else None
        if config.semantic_head:
            self.distill_mlp = semantic_head(width, config.semantic_head.width)
        init_weights(self)

    def forward(self, latents: Tensor) -> DecoderFeatures:
        tokens, inner = self.tokens(latents, self.semantic_depth)
        return DecoderFeatures(self.conv_out(self.to_map(tokens)), inner)
