"""TiTok (arXiv 2406.07550) and One-D-Piece (arXiv 2501.10064): a ViT with latent tokens on each side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from common.errors import UserError
from tokenizer.families.base import Family, codebook, count, forget_usage, heads, swap, swap_back, unknown_usage
from tokenizer.families.maskgit import convolutions, prefixes

PREFIXES = [
    ("latent_tokens", "encoder.latent_tokens"), ("encoder.conv_out.", "quant_conv."),
    ("decoder.decoder_embed.", "post_quant_conv."), ("quantize.", "quantizer."),
    ("pixel_quantize.embedding.", "decoder.proxy_codes."),
]  # fmt: skip
LAYER = [
    ("ln_1", "norm1"), ("attn", "self_attn"), ("ln_2", "norm2"), ("mlp.c_fc", "linear1"), ("mlp.c_proj", "linear2"),
]  # fmt: skip
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, layers, heads
LINEAR = "post_quant_conv.weight"  # a linear layer in released files, a 1x1 convolution here


def _prefixes(levels: int) -> list[tuple[str, str]]:
    inside = prefixes("up", levels, "pixel_decoder.", "decoder.cnn.")
    return [*PREFIXES, *inside, ("pixel_decoder.", "decoder.cnn.")]


def _layers(key: str, names: list[tuple[str, str]]) -> str:
    before, layer, after = key.partition(".transformer.")
    for old, new in names if layer else ():
        after = after.replace(f".{old}.", f".{new}.")
    return before + layer + after


def rename(tensors: Mapping[str, Any]) -> dict[str, Any]:
    levels = count(tensors, r"pixel_decoder\.up\.(\d+)\.") if "pixel_decoder.conv_in.weight" in tensors else 0
    ours = {_layers(key, LAYER): value for key, value in swap(tensors, _prefixes(levels)).items()}
    if LINEAR in ours:
        ours[LINEAR] = ours[LINEAR][:, :, None, None]
    return unknown_usage(ours)


def restore(tensors: Mapping[str, Any]) -> dict[str, Any]:
    levels = count(tensors, r"decoder\.cnn\.conv_blocks\.(\d+)\.") if "decoder.cnn.conv_in.weight" in tensors else 0
    back = [(new, old) for old, new in LAYER]
    plain = {**forget_usage(tensors), LINEAR: tensors[LINEAR].flatten(1)}
    return swap_back({_layers(key, back): value for key, value in plain.items()}, _prefixes(levels))


def config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Two-stage models re-read their tokens and have unit-length codes; attention heads are 64 wide.

    Raises: UserError for relatives that do not decode by themselves.
    """
    if "decoder.text_guidance_proj.weight" in tensors:
        raise UserError("TA-TiTok's decoder reads CLIP features of a caption; only TiTok without text is supported")
    patch = tensors["encoder.patch_embed.weight"].shape[-1]
    parts = {side: {"name": "titok", "patch": patch, **_sizes(tensors, side)} for side in ("encoder", "decoder")}
    two_stage = "decoder.ffn.2.weight" in tensors
    if two_stage:
        if "decoder.proxy_codes.weight" not in tensors:
            raise UserError(
                "this TiTok or One-D-Piece is of the first stage: it predicts codes of MaskGIT-VQGAN and has no pixel "
                "decoder; load one of the second stage"
            )
        codes, dim = tensors["decoder.proxy_codes.weight"].shape
        pixels = convolutions(tensors, "decoder", "cnn.")
        parts["decoder"]["proxy"] = {"codebook_size": codes, "codebook_dim": dim, **pixels}
    parts["encoder"]["reread"] = two_stage
    if "quantizer.embedding.weight" in tensors:
        quantizer = codebook(tensors, "vq", l2_norm=two_stage, rotation=False)
    else:
        quantizer = _gaussian(tensors["quant_conv.weight"].shape[0] // 2)
    return parts | {
        "quantizer": quantizer,
        "z_channels": parts["encoder"]["width"],
        "image_size": patch * round((len(tensors["encoder.positional_embedding"]) - 1) ** 0.5),
        "layout": {"num_tokens": len(tensors["encoder.latent_tokens"]), "redundant": 0},
    }


def _gaussian(dim: int) -> dict[str, Any]:
    return {"name": "kl", "dim": dim, "weight": 1e-6}


def _sizes(tensors: Mapping[str, Tensor], side: str) -> dict[str, int]:
    width = tensors[f"{side}.ln_post.weight"].shape[0]
    layers = count(tensors, re.escape(side) + r"\.transformer\.(\d+)\.")
    return {"width": width, "layers": layers, "heads": heads(width, side)}


def stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` part of a config, from the `config.json` of a hub folder of 1d-tokenizer or One-D-Piece.

    Keys that older files lack have the defaults of the original code: a two-stage model with codes. No settings at all
    say nothing.
    """
    settings = settings.get("config", settings)
    if not settings:
        return {}
    given, size = settings["model"]["vq_model"], settings["dataset"]["preprocessing"]["crop_size"]
    parts: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        name = given[f"vit_{side[:3]}_model_size"]
        if name not in SIZES:
            raise UserError(f"config.json has the size {name!r}; expected {', '.join(SIZES)}, or leave config.json out")
        sizes = dict(zip(("width", "layers", "heads"), SIZES[name], strict=True))
        parts[side] = {"name": "titok", "patch": given[f"vit_{side[:3]}_patch_size"], **sizes}
    parts["encoder"]["reread"] = given.get("is_legacy", True)
    parts["decoder"]["proxy"] = {} if given.get("finetune_decoder", True) else None
    if given.get("quantize_mode", "vq") == "vae":
        quantizer = _gaussian(given["token_size"])
    else:
        quantizer = {
            "name": "vq", "codebook_size": given["codebook_size"], "codebook_dim": given["token_size"],
            "l2_norm": given["use_l2_norm"], "commit_weight": given["commitment_cost"], "rotation": False,
        }  # fmt: skip
    layout = {"num_tokens": given["num_latent_tokens"], "redundant": 0}
    width = parts["encoder"]["width"]
    return parts | {"quantizer": quantizer, "z_channels": width, "image_size": size, "layout": layout}


def _is_one_d_piece(tensors: Mapping[str, Tensor]) -> bool:
    """Two-stage models with 256 latent tokens are One-D-Piece's; TiTok's have 32, 64 or 128."""
    return "decoder.ffn.2.weight" in tensors and len(tensors["latent_tokens"]) == 256


SIGNS = ("latent_tokens", "encoder.latent_token_positional_embedding", "decoder.mask_token", "decoder.ffn.0.weight")
OWN = "encoder.transformer.0.norm1.weight"
_family = partial(Family, signs=SIGNS, own=OWN, rename=rename, config=config, restore=restore, stated=stated)
FAMILIES = (
    _family("onedpiece", "One-D-Piece (TiTok's two-stage network with 256 tokens)", own="", fits=_is_one_d_piece),
    _family("titok", "TiTok"),
)
