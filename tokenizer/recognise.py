"""A tokenizer's config from the names and shapes of its tensors, for files that do not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.errors import UserError

FAMILIES = {  # a key that only this family has: (encoder part, under released names, under ours)
    "hybrid_1d": ("s2to1encoder.encoder_embed.weight", "encoder.transformer.global_proj.weight"),
    "hybrid_2d": ("s2dencoder.encoder_embed.weight", "encoder.transformer.encoder_embed.weight"),
    "dino_vit": ("encoder.lvl1LC", "encoder.levels"),
    "cnn": ("quantize.embedding.weight", "encoder.conv_in.weight"),
}
HEAD_WIDTH = 64  # of every released transformer


def family(keys: Mapping[str, Any], source: str) -> tuple[str, bool]:
    """The encoder part these keys belong to, and whether they are the released names (else ours).

    Raises: UserError for a state dict of anything but a tokenizer.
    """
    for name, (released, ours) in FAMILIES.items():
        if released in keys:
            return name, True
        if ours in keys:
            return name, False
    raise UserError(
        f"{source} holds no tokenizer known here (its first keys: {', '.join(list(keys)[:3])}); "
        "a generator belongs to --gpt-ckpt, other tokenizers need a config of their own"
    )


def tokenizer_config(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The `model` part of a config for tensors under our names.

    What shapes cannot show is as in every released model: unit-length codes, the semantic head's depth 3, attention
    heads 64 wide, 256 pixels where only convolutions stand between image and codes.
    """
    vectors = tensors["quantizer.embedding.weight"]
    quantizer = {"name": "vq_hits" if name == "dino_vit" else "vq"}
    quantizer |= {"codebook_size": vectors.shape[0], "codebook_dim": vectors.shape[1]}
    if name in ("cnn", "dino_vit"):
        quantizer["rotation"] = False
    config: dict[str, Any] = {"quantizer": quantizer, "z_channels": tensors["quant_conv.weight"].shape[1]}
    if name == "dino_vit":
        return config | _vit(tensors)
    inside = "" if name == "cnn" else "cnn."
    cnn = {"encoder": _cnn(tensors, f"encoder.{inside}"), "decoder": _cnn(tensors, f"decoder.{inside}")}
    cnn["decoder"] |= {
        "adaptive_norm": f"decoder.{inside}adaptive.0.gamma.weight" in tensors,
        "depth_to_space": f"decoder.{inside}conv_blocks.0.upsample.conv1.weight" in tensors,
    }
    if name == "cnn":
        return config | {side: {"name": "cnn", **cnn[side]} for side in cnn}
    head = tensors.get("decoder.transformer.distill_mlp.4.weight")
    parts = {side: {"name": name, "cnn": cnn[side], "transformer": _transformer(tensors, side, name)} for side in cnn}
    parts["decoder"]["semantic_head"] = None if head is None else {"depth": 3, "width": head.shape[0]}
    grid = round(len(tensors["decoder.transformer.positional_embedding"]) ** 0.5)
    image_size = grid * 2 ** (len(cnn["encoder"]["multipliers"]) - 1)
    return config | parts | {"image_size": image_size, "layout": _layout(tensors)}


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    ordered = tensors.get("decoder.transformer.latent_token_positional_embedding")
    spare = tensors.get("decoder.transformer.latent_token_positional_embedding_comp")
    grid = tensors["decoder.transformer.positional_embedding"]
    return {"num_tokens": len(grid if ordered is None else ordered), "redundant": 0 if spare is None else len(spare)}


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern`'s group matches at the start of a key."""
    found = [re.match(pattern, key) for key in tensors]
    return max(int(match[1]) for match in found if match) + 1


def _cnn(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    levels = _count(tensors, re.escape(prefix) + r"conv_blocks\.(\d+)\.")
    widths = [tensors[f"{prefix}conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(levels)]
    if prefix.startswith("decoder"):
        widths.reverse()  # its blocks begin with the coarsest level
        channels = widths[0]
    else:
        channels = tensors[f"{prefix}conv_in.weight"].shape[0]
    if any(width % channels for width in widths):
        raise UserError(f"the widths {widths} of {prefix}conv_blocks are no multiples of {channels}; pass a config")
    attention = any(key.startswith(f"{prefix}mid.2.") for key in tensors)
    return {"channels": channels, "multipliers": [width // channels for width in widths], "attention": attention}


def _transformer(tensors: Mapping[str, Tensor], side: str, name: str) -> dict[str, Any]:
    prefix = f"{side}.transformer."
    width = tensors[f"{prefix}ln_post.weight"].shape[0]
    if width % HEAD_WIDTH:
        raise UserError(f"{side} width {width} is no multiple of {HEAD_WIDTH}: its heads are unknown; pass a config")
    sizes = {"width": width, "layers": _count(tensors, re.escape(prefix) + r"transformer\.(\d+)\.")}
    sizes["heads"] = width // HEAD_WIDTH
    if name == "hybrid_2d":
        sizes["qformer"] = f"{prefix}transformer.0.multihead_attn.in_proj_weight" in tensors
    return sizes


def _vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    def sizes(prefix: str) -> dict[str, int]:
        width = tensors[f"{prefix}cls_token"].shape[-1]
        if width % HEAD_WIDTH:
            raise UserError(f"the width {width} of {prefix} is no multiple of {HEAD_WIDTH}; pass a config")
        return {"width": width, "layers": _count(tensors, re.escape(prefix) + r"blocks\.(\d+)\.")} | {
            "heads": width // HEAD_WIDTH, "patch": patch,
        }  # fmt: skip

    patch = tensors["encoder.vit.patch_embed.proj.weight"].shape[-1]
    num_tokens = tensors["encoder.latent_tokens"].shape[1]
    config: dict[str, Any] = {side: {"name": "dino_vit", **sizes(f"{side}.vit.")} for side in ("encoder", "decoder")}
    config |= {"image_size": patch * round(num_tokens**0.5), "layout": {"num_tokens": num_tokens, "redundant": 0}}
    if "teacher.net.cls_token" in tensors:
        config["teacher"] = {"name": "dino_vit", **sizes("teacher.net.")}
    return config
