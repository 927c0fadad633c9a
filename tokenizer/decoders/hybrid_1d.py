"""GigaTok's 1D decoder: a Q-former whose grid queries attend to the tokens, then a CNN. Any prefix can be decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from tokenizer.decoders.cnn import CnnDecoder, CnnDecoderConfig
from tokenizer.layers.resnet import init_weights
from tokenizer.layers.transformer import QFormerLayer, TransformerConfig, position_table
from tokenizer.layout import Layout


@dataclass
class SemanticHeadConfig:
    """The features for semantic regularization: the stream after decoder layer `depth`, through an MLP."""

    depth: int = opt(3, "decoder layer (1-based) whose stream is compared with the teacher")
    width: int = opt(768, "the teacher's feature width; 768 for DINOv2 ViT-B")


def semantic_head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, out)
    )


@dataclass
class DecoderFeatures:
    """Intermediate results of a decoder pass.

    spatial: (B,C,G,G), the input of the CNN. inner: (B,G*G,D), the query stream after the semantic head's layer.
    first: (B,G*G+1,D), the mean memory token and the query stream after layer 1.
    """

    spatial: Tensor
    inner: Tensor | None
    first: Tensor | None = None


@dataclass
class Hybrid1dConfig:
    """Options of `hybrid_1d`."""

    cnn: CnnDecoderConfig = field(default_factory=CnnDecoderConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    semantic_head: SemanticHeadConfig | None = field(default_factory=SemanticHeadConfig)


class QFormerDecoder(nn.Module):
    """latents (B,C,1,W) -> map (B,C,G,G)."""

    def __init__(self, config: Hybrid1dConfig, grid: int, z_channels: int, layout: Layout):
        super().__init__()
        width, layers, heads = config.transformer.resolved()
        self.grid, self.layout = grid, layout
        self.positional_embedding = position_table(grid * grid, width)
        self.latent_token_positional_embedding = position_table(layout.num_tokens, width)
        if layout.redundant:
            self.latent_token_positional_embedding_comp = position_table(layout.redundant, width)
        self.decoder_embed = nn.Linear(z_channels, width)
        self.ln_pre = nn.LayerNorm(z_channels)
        self.transformer = nn.ModuleList(QFormerLayer(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)
        self.semantic_depth = config.semantic_head.depth if config.semantic_head else None
        if config.semantic_head:
            if config.semantic_head.depth > layers:
                raise UserError(f"semantic_head.depth={config.semantic_head.depth} but the decoder has {layers} layers")
            self.distill_mlp = semantic_head(width, config.semantic_head.width)
        init_weights(self)

    def queries(self, memory: Tensor, hidden: Tensor | None) -> Tensor:
        """Initial queries (B,G*G,D) before positions are added: token 0 for every cell."""
        return memory[:, :1].expand(-1, self.grid * self.grid, -1)

    def forward(self, latents: Tensor, num_tokens: int | Tensor | None = None) -> DecoderFeatures:
        tokens = latents.flatten(2).transpose(1, 2)
        keep, hidden = self.layout.visible(tokens.shape[1], num_tokens)
        memory = self.decoder_embed(self.ln_pre(tokens[:, :keep]))
        tables = [self.latent_token_positional_embedding]
        if self.layout.redundant:
            tables.append(self.latent_token_positional_embedding_comp)
        memory_pos = torch.cat(tables)[:keep].transpose(0, 1)
        query_pos = self.positional_embedding.transpose(0, 1)
        stream = self.queries(memory, hidden)
        inner = first = None
        for number, layer in enumerate(self.transformer, start=1):
            stream = layer(stream, memory, query_pos, memory_pos, hidden)
            if number == 1:
                first = torch.cat([self._mean(memory, hidden), stream], dim=1)
            if number == self.semantic_depth:
                inner = stream
        spatial = self.ln_post(stream).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return DecoderFeatures(self.conv_out(spatial), inner, first)

    def _mean(self, memory: Tensor, hidden: Tensor | None) -> Tensor:
        """Mean (B,1,D) of the visible tokens (B,W,D), without padding tokens."""
        memory = memory[:, : self.layout.num_tokens]
        if hidden is None:
            return memory.mean(dim=1, keepdim=True)
        shown = (~hidden)[:, : self.layout.num_tokens, None].to(memory.dtype)
        return (memory * shown).sum(dim=1, keepdim=True) / shown.sum(dim=1, keepdim=True)


class Hybrid1dDecoder(nn.Module):
    """latents (B,z_channels,1,W) -> images (B,3,H,W)."""

    Config = Hybrid1dConfig
    tokens_1d, any_size, groups = True, False, 1
    cnn_class, transformer_class = CnnDecoder, QFormerDecoder

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__()
        self.cnn = self.cnn_class(config.cnn, image_size, z_channels)
        self.transformer = self.transformer_class(config, image_size // config.cnn.stride, z_channels, layout)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.cnn.last_layer

    def forward(self, latents: Tensor, num_tokens: int | Tensor | None = None) -> tuple[Tensor, DecoderFeatures]:
        """`num_tokens`: use only that many leading tokens (int, or int64 (B,) per image); None = at most N."""
        features = self.transformer(latents, num_tokens)
        return self.cnn(features.spatial), features
