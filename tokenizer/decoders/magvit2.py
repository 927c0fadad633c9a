"""Open-MAGVIT2's convolutional decoder."""

from __future__ import annotations

from tokenizer.decoders.cnn import CnnDecoder
from tokenizer.encoders.magvit2 import PlainMiddle


class Magvit2Decoder(PlainMiddle, CnnDecoder):
    """map (B,z_channels,G,G) -> images (B,3,G*stride,G*stride). Source: Open-MAGVIT2 (arXiv 2409.04410)."""
