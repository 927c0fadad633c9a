"""The decoder of MaskGIT's VQGAN, which is also the pixel decoder of two-stage TiTok and One-D-Piece."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.config import opt
from tokenizer.decoders.cnn import CnnDecoder, CnnDecoderConfig
from tokenizer.encoders.maskgit import MaskgitBlocks


@dataclass
class MaskgitDecoderConfig(CnnDecoderConfig):
    """The options of `cnn` without GigaTok's changes."""

    adaptive_norm: bool = opt(False, "AdaptiveGroupNorm styled by the latent map before every level")
    depth_to_space: bool = opt(False, "upsample by depth-to-space instead of nearest neighbour")


class MaskgitDecoder(MaskgitBlocks, CnnDecoder):
    """map (B,z_channels,G,G) -> images (B,3,G*stride,G*stride). Source: MaskGIT (arXiv 2202.04200)."""

    Config = MaskgitDecoderConfig

    def forward(self, latents: Tensor) -> Tensor:
        return 2 * super().forward(latents) - 1  # the weights make [0,1]
