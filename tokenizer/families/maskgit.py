"""MaskGIT's VQGAN (arXiv 2202.04200) as converted in 1d-tokenizer; its decoder is also part of two-stage TiTok."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, codebook, count, forget_usage, swap, swap_back, unknown_usage
from tokenizer.families.llamagen import cnn


def prefixes(side: str, levels: int, theirs: str, ours: str) -> list[tuple[str, str]]:
    """(released, ours) of the levels of an encoder ("down") or decoder ("up"), which begin with `theirs` and `ours`.

    Our decoder's blocks are numbered from the coarsest level.
    """
    pairs = []
    for level in range(levels):
        block = f"{ours}conv_blocks.{levels - 1 - level if side == 'up' else level}."
        pairs.append((f"{theirs}{side}.{level}.block.", f"{block}res."))
        pairs.append((f"{theirs}{side}.{level}.upsample_conv.", f"{block}upsample.conv."))
    return pairs


def _prefixes(levels: int) -> list[tuple[str, str]]:
    both = (("down", "encoder."), ("up", "decoder."))
    return [("quantize.", "quantizer.")] + [pair for side, part in both for pair in prefixes(side, levels, part, part)]


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return unknown_usage(swap(tensors, _prefixes(count(tensors, r"encoder\.down\.(\d+)\."))))


def restore(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return swap_back(forget_usage(tensors), _prefixes(count(tensors, r"encoder\.conv_blocks\.(\d+)\.")))


def convolutions(tensors: Mapping[str, Tensor], side: str, inside: str = "") -> dict[str, Any]:
    """The options of an encoder or decoder, whose keys begin with `<side>.<inside>`."""
    blocks = count(tensors, re.escape(f"{side}.{inside}") + r"conv_blocks\.0\.res\.(\d+)\.")
    return {**cnn(tensors, side, inside), "blocks": blocks}


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Released models are trained at 256 pixels."""
    return {
        "quantizer": codebook(tensors, "vq", l2_norm=False, rotation=False),
        "z_channels": tensors["quantizer.embedding.weight"].shape[1],
        "quant_conv_kernel": 0,
        **{side: {"name": "maskgit", **convolutions(tensors, side)} for side in ("encoder", "decoder")},
    }


FAMILY = Family(
    "maskgit", "MaskGIT-VQGAN", ("encoder.down.0.block.0.norm1.weight", "decoder.up.1.upsample_conv.weight"),
    "", rename, config, restore,
    fits=lambda tensors: "quant_conv.weight" not in tensors and "encoder.conv_in.bias" not in tensors,
)  # fmt: skip
