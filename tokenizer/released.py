"""Tokenizers from wherever they are kept; see `tokenizer.load`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checkpoint import has_weights, load_into, read_config, read_weights, resolve_folder
from common.config import merge, read_yaml, resolve
from common.errors import UserError
from common.meta import unfilled
from common.weights import Released, read_released
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer
from tokenizer.paper_flags import from_released, to_released

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


ORDER = {"ema": ("ema", "model", "state_dict"), "model": ("model", "state_dict")}

Stated = TokenizerConfig | Mapping[str, Any] | str | Path | None


def load_tokenizer(
    path: str | Path, weights: str, device: str | torch.device, config: Stated, image_size: int | None = None
) -> Tokenizer:
    """See `tokenizer.load`. Weights are mapped from the disk, not copied, until they are moved or changed."""
    stated, tensors = read_tokenizer(path, weights, config)
    if image_size not in (None, stated.image_size):
        if stated.encoder["name"] != "cnn" or not resolve_folder(path).is_file():
            raise UserError(
                f"--image-size is {image_size}, tokenizer {str(path)!r} has {stated.image_size}; leave it out"
            )
        # Convolutions take images of any size, and released files do not say which.
        stated = dataclasses.replace(stated, image_size=image_size)
    with unfilled():
        model = Tokenizer(stated)
    load_into(model, tensors, str(path), assign=True)
    return model.eval().requires_grad_(False).to(device)


def read_tokenizer(path: str | Path, weights: str, config: Stated = None) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """Config and tensors (our names) of a checkpoint folder, a run, a released file or a hub id."""
    if weights not in ORDER:
        raise UserError(f"weights got {weights!r}; a tokenizer has ema or model")
    found = resolve_folder(path)
    if found.is_file():
        return _from_file(found, weights, config)
    own = stated_config(read_config(found)["model"])
    if config is not None and stated_config(config) != own:
        raise UserError(f"the config given describes another tokenizer than {str(found)!r} holds; leave it out")
    if weights == "ema" and not has_weights(found, "ema"):
        weights = "model"
    return own, read_weights(found, weights)


def stated_config(config: TokenizerConfig | Mapping[str, Any] | str | Path) -> TokenizerConfig:
    """A config from its parts, or from a YAML file (whose `model` it is)."""
    if isinstance(config, TokenizerConfig):
        return config
    raw = read_yaml(config).get("model", {}) if isinstance(config, str | Path) else config
    return resolve(TokenizerConfig, raw, where="model")


def _from_file(path: Path, weights: str, config: Stated) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    released: Released = read_released(path, ORDER[weights])
    name, named_as_released = family(released.tensors, str(path))
    tensors = from_released(released.tensors, name) if named_as_released else released.tensors
    if isinstance(config, TokenizerConfig | str | Path):
        return _with_its_layout(stated_config(config), tensors, path), tensors
    beside = path.with_name("config.json")
    if not named_as_released and path.name == "model.safetensors" and beside.is_file():
        return stated_config(read_config(path.parent)["model"]), tensors
    try:
        recognised = stated_config(merge(tokenizer_config(tensors, name), config or {}))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{str(path)!r} looks like a {name} tokenizer but misses {error}; pass its config") from error
    where = f" (its {released.part!r})" if released.part else ""
    print(f"{path}{where}: {_describe(recognised)}", file=sys.stderr)
    return recognised, tensors


def _with_its_layout(config: TokenizerConfig, tensors: Mapping[str, Tensor], path: Path) -> TokenizerConfig:
    """ReTok and GigaTok ship configs of one name: whether there are redundant tokens, the file decides."""
    table = tensors.get("decoder.transformer.latent_token_positional_embedding_comp")
    redundant = 0 if table is None else len(table)
    if redundant == config.layout.redundant:
        return config
    stated = config.layout.redundant
    print(f"{path}: has {redundant} redundant tokens, not {stated} as its config says", file=sys.stderr)
    return dataclasses.replace(config, layout=dataclasses.replace(config.layout, redundant=redundant))


def _describe(config: TokenizerConfig) -> str:
    quantizer, layout = config.quantizer, config.layout
    spare = f" and {layout.redundant} redundant" if layout.redundant else ""
    tokens = f"{layout.num_tokens}{spare} tokens, " if config.encoder["name"] != "cnn" else ""
    codes = f"{quantizer['codebook_size']} x {quantizer['codebook_dim']} codes"
    return f"recognised a {config.encoder['name']} tokenizer, {config.image_size} pixels, {tokens}{codes}"


def write_released(model: Tokenizer, path: str | Path) -> None:
    """The papers' layout: `{"model": state dict under the released names}`."""
    tensors = to_released(model.state_dict(), model.config.encoder["name"])
    torch.save({"model": {key: value.detach().cpu().contiguous() for key, value in tensors.items()}}, path)
