"""XQ-GAN and ImageFolder (arXiv 2412.01762, 2410.01756): RobusTok's network with product and residual codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, count, no_usage, swap
from tokenizer.families.robustok import PREFIXES
from tokenizer.families.robustok import config as robustok_config
from tokenizer.families.var import HITS, PHI

SCALES = [1, 1, 2, 3, 3, 4, 5, 6, 8, 11]
"""Of every released file with several scales, whose 121 tokens are 11 x 11."""
GUIDES = ("detail_model.", "sem_linear.")
"""Frozen networks of training: left out."""


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    branches = sorted({key.split(".")[1] for key in tensors if key.startswith("quantizes.")})
    found, added = [], {}
    parts = [(f"quantizes.{branch}.", f"quantizer.parts.{branch}.") for branch in branches]
    for theirs, own in parts or [("quantize.", "quantizer.")]:
        if any(key.startswith(theirs + PHI[0]) for key in tensors):
            found.append((theirs + PHI[0], own + PHI[1]))
            added |= no_usage(own)
        else:
            found.append((theirs + HITS, f"{own}hits"))
        found.append((theirs, own))
    kept = {key: value for key, value in swap(tensors, found + PREFIXES).items() if not key.endswith(HITS)}
    return {key: value for key, value in kept.items() if not key.startswith(GUIDES)} | added


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As in every released model: attention heads 64 wide, 256 pixels for files without as many tokens as patches."""
    product = "quantizer.parts.0.hits" in tensors or "quantizer.parts.0.smoothers.0.weight" in tensors
    groups = count(tensors, r"quantizer\.parts\.(\d+)\.") if product else 1
    inside = "quantizer.parts.0." if product else "quantizer."
    part = _part(tensors, inside)
    total = tensors["encoder.latent_tokens"].shape[1]
    stated = robustok_config(tensors)
    stated["encoder"]["groups"] = groups
    stated["layout"]["num_tokens"] = total // groups
    patches = tensors["encoder.vit.pos_embed"].shape[1] - 1
    stated["image_size"] = stated["encoder"]["patch"] * round(patches**0.5)
    return stated | {"quantizer": {"name": "product", "groups": groups, "part": part} if product else part}


def _part(tensors: Mapping[str, Tensor], inside: str) -> dict[str, Any]:
    """The quantizer of one branch. Commitment is not divided by the number of scales, except with binary codes."""
    scales = {"scales": SCALES, "smoothers": sum(key.startswith(f"{inside}smoothers.") for key in tensors) // 2}
    if f"{inside}scaler" in tensors:
        return {"name": "binary_multi_scale", "codebook_size": 2 ** tensors["quant_conv.weight"].shape[0], **scales}
    size, dim = tensors[f"{inside}embedding.weight"].shape
    sizes = {"codebook_size": size, "codebook_dim": dim, "rotation": False}
    if f"{inside}hits" in tensors:
        return {"name": "vq_hits", **sizes}
    return {"name": "multi_scale", "commit_weight": 0.25 * len(SCALES), **sizes, **scales}


FAMILY = Family(
    "xqgan", "XQ-GAN", ("encoder.latent_tokens", "encoder.lvl1LC"), "", rename, config,
    fits=lambda tensors: any(key.startswith(("quantizes.0.", f"quantize.{PHI[0]}")) for key in tensors),
)  # fmt: skip
