"""LlamaGen's convolutional VQ tokenizers (arXiv 2406.06525)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from common.errors import UserError
from tokenizer.families.base import Family, codebook, count, swap, swap_back

PREFIXES = [("quantize.", "quantizer.")]


def cnn(tensors: Mapping[str, Tensor], side: str, inside: str = "") -> dict[str, Any]:
    """The options of a convolutional encoder or decoder (`side`), whose keys begin with `<side>.<inside>`."""
    prefix = f"{side}.{inside}"
    levels = count(tensors, re.escape(prefix) + r"conv_blocks\.(\d+)\.")
    widths = [tensors[f"{prefix}conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(levels)]
    if side == "decoder":
        widths.reverse()  # its blocks start at the coarsest level
        channels = widths[0]
    else:
        channels = tensors[f"{prefix}conv_in.weight"].shape[0]
    if any(width % channels for width in widths):
        raise UserError(f"the widths {widths} of {prefix}conv_blocks are not multiples of {channels}; pass a config")
    attention = any(key.startswith(f"{prefix}mid.2.") for key in tensors)
    options = {"channels": channels, "multipliers": [width // channels for width in widths], "attention": attention}
    if side == "decoder":
        options["adaptive_norm"] = f"{prefix}adaptive.0.gamma.weight" in tensors
        options["depth_to_space"] = f"{prefix}conv_blocks.0.upsample.conv1.weight" in tensors
    return options


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Shapes do not show everything: codes are taken to be unit vectors and images to be 256 pixels."""
    return {
        "quantizer": codebook(tensors, "vq", rotation=False),
        "z_channels": tensors["quant_conv.weight"].shape[1],
        **{side: {"name": "cnn", **cnn(tensors, side)} for side in ("encoder", "decoder")},
    }


FAMILY = Family(
    "cnn", "LlamaGen", ("quantize.embedding.weight",), "quantizer.embedding.weight",
    partial(swap, prefixes=PREFIXES), config, partial(swap_back, prefixes=PREFIXES),
)  # fmt: skip
