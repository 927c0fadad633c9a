"""The options of tokenizer training. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from common.config import opt, part
from tokenizer.layout import Layout


@dataclass
class TokenizerConfig:
    """What a tokenizer is. Kept in every checkpoint as `model`."""

    image_size: int = opt(256, "side of the square images, pixels")
    z_channels: int = opt(256, "channels of the maps between CNN, transformer and quantizer")
    layout: Layout = field(default_factory=Layout)
    encoder: dict[str, Any] = part("tokenizer.encoders:ENCODERS", "images -> latents", {"name": "hybrid_1d"})
    decoder: dict[str, Any] = part("tokenizer.decoders:DECODERS", "latents -> images", {"name": "hybrid_1d"})
    quantizer: dict[str, Any] = part("tokenizer.quantizers:QUANTIZERS", "latents -> codes", {"name": "vq"})
