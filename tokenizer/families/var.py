"""VAR's multi-scale VQVAE (arXiv 2404.02905): taming's network, one projection for queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, codebook, swap, unknown_usage
from tokenizer.families.taming import network, pairs
from tokenizer.quantizers.multi_scale import SCALES

PHI = ("quant_resi.qresi_ls.", "smoothers.")
HITS = "ema_vocab_hit_SV"
"""Counts of used codes by scale, of training only: left out."""


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    split: dict[str, Any] = {}
    for key, value in tensors.items():
        if ".qkv." in key:
            split |= {key.replace(".qkv.", f".{name}."): part for name, part in zip("qkv", value.chunk(3), strict=True)}
        elif not key.endswith(HITS):
            split[key] = value
    phi = (f"quantize.{PHI[0]}", f"quantizer.{PHI[1]}")
    return unknown_usage(swap(split, [phi, *pairs(tensors)]))


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scales are not stored: those of 256 pixels. For 512, pass image_size and quantizer.scales."""
    options = {"l2_norm": False, "scales": SCALES, "smoothers": sum(".smoothers." in key for key in tensors) // 2}
    return {
        "quantizer": codebook(tensors, "multi_scale", **options),
        "quant_conv_kernel": tensors["quant_conv.weight"].shape[-1], **network(tensors),
    }  # fmt: skip


FAMILY = Family(
    "var", "VAR's VQVAE", ("quantize.quant_resi.qresi_ls.0.weight", "encoder.conv_in.weight"), "", rename, config
)
