"""Open-MAGVIT2 (arXiv 2409.04410), also GEAR-LFQ: no stored codebook, no convolutions around the quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, count, no_usage, swap
from tokenizer.families.maskgit import convolutions
from tokenizer.families.taming import pairs


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    levels = count(tensors, r"decoder\.up\.(\d+)\.")
    found = [(f"{side}.mid_block.", f"{side}.mid.") for side in ("encoder", "decoder")]
    for level in range(levels):
        found.append((f"decoder.adaptive.{level}.", f"decoder.adaptive.{levels - 1 - level}."))
        found.append((f"encoder.down.{level}.downsample.", f"encoder.conv_blocks.{level}.downsample.conv."))
    return {**swap(tensors, found + pairs(tensors)), **no_usage()}


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Images are taken to be 256 pixels; any multiple of the stride works."""
    bits = tensors["encoder.conv_out.weight"].shape[0]
    sides = {
        side: {"name": "magvit2", **convolutions(tensors, side), "attention": False} for side in ("encoder", "decoder")
    }
    return {"quantizer": {"name": "lfq", "codebook_size": 2**bits}, "z_channels": bits, "quant_conv_kernel": 0, **sides}


FAMILY = Family(
    "magvit2", "Open-MAGVIT2", ("decoder.adaptive.0.gamma.weight", "encoder.mid_block.0.conv1.weight"), "",
    rename, config, fits=lambda tensors: not any(key.startswith("quant") for key in tensors),
)  # fmt: skip
