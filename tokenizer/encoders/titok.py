"""The encoder of TiTok and One-D-Piece: a ViT whose output are its latent tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from tokenizer.layers.resnet import init_weights
from tokenizer.layers.token_vit import TokenVit, TokenVitConfig
from tokenizer.layout import Layout


class TitokEncoder(TokenVit):
    """images (B,3,H,W) in [-1,1] -> latents (B,D,1,N). Source: TiTok (arXiv 2406.07550), One-D-Piece (2501.10064)."""

    @dataclass
    class Config(TokenVitConfig):
        reread: bool = opt(
            False,
            "read the tokens' memory (N,D) as (D,N) instead of transposing it, as the released two-stage TiTok and "
            "One-D-Piece do: each latent then mixes pieces of all tokens",
        )

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__(config, image_size, layout)
        if z_channels != self.width:
            raise UserError(f"model.z_channels={z_channels} but the encoder has width={self.width}; set them equal")
        self.reread = config.reread
        self.latent_tokens = self.table(layout.num_tokens)
        self.patch_embed = nn.Conv2d(3, self.width, config.patch, config.patch)
        init_weights(self)

    def tokens(self, images: Tensor) -> Tensor:
        """The latent tokens (B,N,D) after the last norm."""
        patches = self.patch_embed((images + 1) / 2).flatten(2).transpose(1, 2)  # the weights expect [0,1]
        return self.ln_post(self.run(patches, self.latent_tokens.expand(len(images), -1, -1))[1])

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        if self.reread:
            return tokens.reshape(len(tokens), self.width, 1, -1)
        return tokens.transpose(1, 2).unsqueeze(2)
