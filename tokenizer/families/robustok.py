"""RobusTok's tokenizers (arXiv 2503.08354): a ViT on each side, in the original with its frozen teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, codebook, count, heads, swap, swap_back

PREFIXES = [
    ("encoder.model.", "encoder.vit."),
    ("encoder.lvl1LC", "encoder.levels"),
    ("encoder.lvl_embed.", "encoder.level_embedding."),
    ("decoder.model.", "decoder.vit."),
    ("decoder.lvl1LC", "decoder.levels"),
    ("decoder.lvl_embed.", "decoder.level_embedding."),
    ("decoder.to_pixel.model.", "decoder.to_pixel."),
    ("quantize.ema_vocab_hit_SV", "quantizer.hits"),
    ("quantize.", "quantizer."),
    ("semantic_model.", "teacher.net."),
]


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As in every released model: codes are unit vectors and attention heads 64 wide."""
    patch = tensors["encoder.vit.patch_embed.proj.weight"].shape[-1]
    num_tokens = tensors["encoder.latent_tokens"].shape[1]
    stated = {side: {"name": "dino_vit", **vit(tensors, f"{side}.vit.", patch)} for side in ("encoder", "decoder")}
    if "teacher.net.cls_token" in tensors:
        stated["teacher"] = {"name": "dino_vit", **vit(tensors, "teacher.net.", patch)}
    return stated | {
        "quantizer": codebook(tensors, "vq_hits", rotation=False),
        "z_channels": tensors["quant_conv.weight"].shape[1],
        "image_size": patch * round(num_tokens**0.5),
        "layout": {"num_tokens": num_tokens, "redundant": 0},
    }


def vit(tensors: Mapping[str, Tensor], prefix: str, patch: int) -> dict[str, int]:
    """The sizes of a ViT."""
    width = tensors[f"{prefix}cls_token"].shape[-1]
    layers = count(tensors, re.escape(prefix) + r"blocks\.(\d+)\.")
    return {"width": width, "layers": layers, "heads": heads(width, prefix), "patch": patch}


FAMILY = Family(
    "dino_vit", "RobusTok", ("encoder.lvl1LC",), "encoder.levels",
    partial(swap, prefixes=PREFIXES), config, partial(swap_back, prefixes=PREFIXES),
)  # fmt: skip
