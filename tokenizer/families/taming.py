"""taming-transformers' VQGAN (arXiv 2012.09841) and IBQ (arXiv 2412.02692): LlamaGen's network under other names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from tokenizer.families.base import Family, codebook, count, swap, unknown_usage
from tokenizer.families.maskgit import convolutions

SIGNS = ("encoder.mid.attn_1.q.weight", "decoder.up.0.block.0.norm1.weight", "quantize.embedding.weight")
IBQ_BLOCKS = 4
"""Residual blocks of a level of every released IBQ; taming's VQGAN has 2."""


def pairs(tensors: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(released, ours) of taming's network. Our decoder's levels are numbered from the coarsest one."""
    levels = count(tensors, r"decoder\.up\.(\d+)\.")
    found = [("quantize.", "quantizer.")]
    for side, part in (("encoder", "down"), ("decoder", "up")):
        for level in range(levels):
            own = f"{side}.conv_blocks.{levels - 1 - level if side == 'decoder' else level}."
            found.append((f"{side}.{part}.{level}.block.", f"{own}res."))
            found.append((f"{side}.{part}.{level}.", own))
        for place, name in enumerate(("block_1", "attn_1", "block_2")):
            found.append((f"{side}.mid.{name}.", f"{side}.mid.{place}."))
    return found


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return unknown_usage(swap(tensors, pairs(tensors)))


def network(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Everything but the quantizer. Trained at 256 pixels; any multiple of the stride works."""
    sides = {side: {"name": "cnn", **convolutions(tensors, side)} for side in ("encoder", "decoder")}
    return {"z_channels": tensors["encoder.conv_out.weight"].shape[0], **sides}


def config(tensors: Mapping[str, Tensor], quantizer: str) -> dict[str, Any]:
    other = {"vq": "ibq", "ibq": "vq"}[quantizer]
    options = {"l2_norm": False, "rotation": False, "codebook_weight": 0.25, "commit_weight": 1.0}
    print(
        f"taming's VQGAN and IBQ have the same keys; {IBQ_BLOCKS} residual blocks a level, averages beside the weights "
        f"and GEAR's wrapper mean IBQ: taken for {quantizer}; for the other quantizer pass "
        f"config={{'quantizer': {codebook(tensors, other, **options)}}}",
        file=sys.stderr,
    )
    return {"quantizer": codebook(tensors, quantizer, **options), **network(tensors)}


def _is_ibq(tensors: Mapping[str, Tensor]) -> bool:
    return f"encoder.down.0.block.{IBQ_BLOCKS - 1}.norm1.weight" in tensors


FAMILIES = (
    Family("ibq", "IBQ", SIGNS, "", rename, partial(config, quantizer="ibq"), fits=_is_ibq),
    Family("taming", "taming's VQGAN", SIGNS, "", rename, partial(config, quantizer="vq")),
)
