"""GigaTok's (arXiv 2504.08736) and ReTok's tokenizers: a CNN and a transformer on each side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, codebook, count, heads, swap, swap_back
from tokenizer.families.llamagen import cnn


def prefixes(encoder: str, decoder: str) -> list[tuple[str, str]]:
    """(released, ours), given the released names of the transformers."""
    return [
        ("encoder.", "encoder.cnn."), (f"{encoder}.", "encoder.transformer."),
        (f"{decoder}.", "decoder.transformer."), ("decoder.", "decoder.cnn."), ("quantize.", "quantizer."),
    ]  # fmt: skip


def config(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """As in every released model: codes are unit vectors, the semantic head follows layer 3, heads are 64 wide."""
    parts = {
        side: {"name": name, "cnn": cnn(tensors, side, "cnn."), "transformer": _transformer(tensors, side, name)}
        for side in ("encoder", "decoder")
    }
    head = tensors.get("decoder.transformer.distill_mlp.4.weight")
    parts["decoder"]["semantic_head"] = None if head is None else {"depth": 3, "width": head.shape[0]}
    positions = tensors["decoder.transformer.positional_embedding"]
    ordered = tensors.get("decoder.transformer.latent_token_positional_embedding")
    return parts | {
        "quantizer": codebook(tensors, "vq"),
        "z_channels": tensors["quant_conv.weight"].shape[1],
        "image_size": round(len(positions) ** 0.5) * 2 ** (len(parts["encoder"]["cnn"]["multipliers"]) - 1),
        "layout": {"num_tokens": len(positions if ordered is None else ordered), "redundant": redundant(tensors)},
    }


def redundant(tensors: Mapping[str, Tensor]) -> int:
    """The number of redundant tokens."""
    return len(tensors.get("decoder.transformer.latent_token_positional_embedding_comp", ()))


def _transformer(tensors: Mapping[str, Tensor], side: str, name: str) -> dict[str, Any]:
    prefix = f"{side}.transformer."
    width = tensors[f"{prefix}ln_post.weight"].shape[0]
    sizes: dict[str, Any] = {"width": width, "layers": count(tensors, re.escape(prefix) + r"transformer\.(\d+)\.")}
    sizes["heads"] = heads(width, prefix)
    if name == "hybrid_2d":
        sizes["qformer"] = f"{prefix}transformer.0.multihead_attn.in_proj_weight" in tensors
    return sizes


def _family(name: str, title: str, encoder: str, decoder: str, own: str) -> Family:
    pairs = prefixes(encoder, decoder)
    return Family(
        name, title, (f"{encoder}.encoder_embed.weight",), f"encoder.transformer.{own}.weight",
        partial(swap, prefixes=pairs), partial(config, name=name), partial(swap_back, prefixes=pairs),
    )  # fmt: skip


FAMILIES = (
    _family("hybrid_1d", "GigaTok or ReTok", "s2to1encoder", "s1to2decoder", "global_proj"),
    _family("hybrid_2d", "GigaTok on a grid", "s2dencoder", "s2ddecoder", "encoder_embed"),
)
