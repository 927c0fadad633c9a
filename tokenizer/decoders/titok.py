"""The decoder of TiTok and One-D-Piece: a ViT over mask tokens and any prefix of the code tokens, then pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from common.config import opt
from tokenizer.decoders.maskgit import MaskgitDecoder, MaskgitDecoderConfig
from tokenizer.layers.resnet import depth_to_space, init_weights
from tokenizer.layers.token_vit import TokenVit, TokenVitConfig
from tokenizer.layout import Layout


@dataclass
class ProxyConfig(MaskgitDecoderConfig):
    """MaskGIT-VQGAN's codebook and decoder."""

    codebook_size: int = opt(1024, "number of MaskGIT-VQGAN's codes")
    codebook_dim: int = opt(256, "width of these codes")


class TitokDecoder(TokenVit):
    """latents (B,D,1,n), 1 <= n <= N -> images (B,3,H,W). D is the decoder's width.

    Source: TiTok (arXiv 2406.07550); One-D-Piece (arXiv 2501.10064), which trains on prefixes (`nested_dropout`).
    """

    @dataclass
    class Config(TokenVitConfig):
        proxy: ProxyConfig | None = opt(
            None, "predict MaskGIT-VQGAN's codes and decode their mixture, as two-stage models do; null = pixels"
        )

    def __init__(self, config: Config, image_size: int, z_channels: int, layout: Layout):
        super().__init__(config, image_size, layout)
        self.patch, width = config.patch, self.width
        self.z_channels = width
        self.mask_token = self.table(1, 1)
        if config.proxy:
            codes, dim = config.proxy.codebook_size, config.proxy.codebook_dim
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codes, 1))
            self.proxy_codes = nn.Embedding(codes, dim)
            self.cnn = MaskgitDecoder(config.proxy, image_size, dim)
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * config.patch**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        init_weights(self)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight whose gradients balance the adversarial loss."""
        return self.cnn.last_layer if hasattr(self, "cnn") else self.conv_out.weight

    def features(self, latents: Tensor, num_tokens: int | Tensor | None = None) -> Tensor:
        """The mask tokens (B,D,G,G) after the last norm."""
        keep, hidden = self.layout.visible(latents.shape[-1], num_tokens)
        tokens = latents.flatten(2).transpose(1, 2)[:, :keep]
        masks, _ = self.run(self.mask_token.expand(len(tokens), self.grid**2, -1), tokens, hidden)
        return self.ln_post(masks).transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def mixture(self, logits: Tensor) -> Tensor:
        """Logits of MaskGIT-VQGAN's codes (B,K,G,G) -> the mean code vectors (B,e,G,G)."""
        return (logits.softmax(1).movedim(1, -1) @ self.proxy_codes.weight).movedim(-1, 1)

    def forward(self, latents: Tensor, num_tokens: int | Tensor | None = None) -> Tensor:
        """`num_tokens`: use only that many leading tokens (int, or int64 (B,) per image); None = all there are."""
        out = self.ffn(self.features(latents, num_tokens))
        if hasattr(self, "cnn"):
            return self.cnn(self.mixture(out))
        return 2 * self.conv_out(depth_to_space(out, self.patch)) - 1  # the weights make [0,1]
