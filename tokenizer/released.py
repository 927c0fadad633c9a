"""Tokenizers in files of any origin: recognised by keys and shapes, renamed, loaded. See `tokenizer.load`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.checkpoint import load_into
from common.config import lookup, merge, resolve
from common.errors import UserError
from common.hub import Found, find, model_part
from common.meta import unfilled
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

Value = TypeVar("Value")

STATE_DICT_PREFIXES = {  # encoder part name: (released prefix, our prefix)
    "hybrid_1d": [
        ("encoder.", "encoder.cnn."),
        ("s2to1encoder.", "encoder.transformer."),
        ("s1to2decoder.", "decoder.transformer."),
        ("decoder.", "decoder.cnn."),
        ("quantize.", "quantizer."),
    ],
    "hybrid_2d": [
        ("encoder.", "encoder.cnn."),
        ("s2dencoder.", "encoder.transformer."),
        ("s2ddecoder.", "decoder.transformer."),
        ("decoder.", "decoder.cnn."),
        ("quantize.", "quantizer."),
    ],
    "cnn": [("quantize.", "quantizer.")],
    "dino_vit": [
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
    ],
}
RELEASED_NAMES = re.compile(r"quantize\.|s2to1encoder\.|s2dencoder\.|encoder\.model\.")
"""Keys under released names, not ours, begin like this."""


def from_released(tensors: Mapping[str, Value], encoder: str) -> dict[str, Value]:
    """A released state dict under our keys; `encoder` is the name of the encoder part."""
    return {_swap(key, STATE_DICT_PREFIXES.get(encoder, ())): value for key, value in tensors.items()}


def to_released(tensors: Mapping[str, Value], encoder: str) -> dict[str, Value]:
    """Inverse of `from_released`."""
    swapped = [(ours, theirs) for theirs, ours in STATE_DICT_PREFIXES.get(encoder, ())]
    return {_swap(key, swapped): value for key, value in tensors.items()}


def _swap(key: str, prefixes: list[tuple[str, str]]) -> str:
    for old, new in prefixes:
        if key.startswith(old):
            return new + key[len(old) :]
    return key


FAMILIES = {  # encoder part: keys that only its tokenizers have, under released names and under ours
    "hybrid_1d": ("s2to1encoder.encoder_embed.weight", "encoder.transformer.global_proj.weight"),
    "hybrid_2d": ("s2dencoder.encoder_embed.weight", "encoder.transformer.encoder_embed.weight"),
    "dino_vit": ("encoder.lvl1LC", "encoder.levels"),
    "cnn": ("quantize.embedding.weight", "encoder.conv_in.weight"),
}
HEAD_WIDTH = 64  # of every released transformer


def _family(keys: Container[str]) -> str | None:
    return next((name for name, markers in FAMILIES.items() if any(key in keys for key in markers)), None)


def family(keys: Mapping[str, Any], source: str) -> str:
    """The encoder part that state-dict keys belong to.

    Raises: UserError for a state dict of anything but a tokenizer.
    """
    if name := _family(keys):
        return name
    raise UserError(
        f"{source} holds no known tokenizer (its first keys: {', '.join(list(keys)[:3])}); "
        "a generator belongs to --gpt-ckpt, other tokenizers need a config of their own"
    )


def tokenizer_config(tensors: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The `model` part of a config for tensors under our names.

    Shapes do not show everything. The rest is as in every released model: unit-length codes, a semantic head after
    layer 3, attention heads 64 wide, 256 pixels for purely convolutional models.
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
    grid = tensors["decoder.transformer.positional_embedding"]
    return {"num_tokens": len(grid if ordered is None else ordered), "redundant": _redundant(tensors)}


def _redundant(tensors: Mapping[str, Tensor]) -> int:
    table = tensors.get("decoder.transformer.latent_token_positional_embedding_comp")
    return 0 if table is None else len(table)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that the group of `pattern` matches at the start of a key."""
    found = [re.match(pattern, key) for key in tensors]
    return max(int(match[1]) for match in found if match) + 1


def _cnn(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    levels = _count(tensors, re.escape(prefix) + r"conv_blocks\.(\d+)\.")
    widths = [tensors[f"{prefix}conv_blocks.{level}.res.0.conv2.weight"].shape[0] for level in range(levels)]
    if prefix.startswith("decoder"):
        widths.reverse()  # its blocks start at the coarsest level
        channels = widths[0]
    else:
        channels = tensors[f"{prefix}conv_in.weight"].shape[0]
    if any(width % channels for width in widths):
        raise UserError(f"the widths {widths} of {prefix}conv_blocks are not multiples of {channels}; pass a config")
    attention = any(key.startswith(f"{prefix}mid.2.") for key in tensors)
    return {"channels": channels, "multipliers": [width // channels for width in widths], "attention": attention}


def _transformer(tensors: Mapping[str, Tensor], side: str, name: str) -> dict[str, Any]:
    prefix = f"{side}.transformer."
    width = tensors[f"{prefix}ln_post.weight"].shape[0]
    if width % HEAD_WIDTH:
        raise UserError(f"{side} width {width} is not a multiple of {HEAD_WIDTH}: heads unknown; pass a config")
    sizes = {"width": width, "layers": _count(tensors, re.escape(prefix) + r"transformer\.(\d+)\.")}
    sizes["heads"] = width // HEAD_WIDTH
    if name == "hybrid_2d":
        sizes["qformer"] = f"{prefix}transformer.0.multihead_attn.in_proj_weight" in tensors
    return sizes


def _vit(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    def sizes(prefix: str) -> dict[str, int]:
        width = tensors[f"{prefix}cls_token"].shape[-1]
        if width % HEAD_WIDTH:
            raise UserError(f"the width {width} of {prefix} is not a multiple of {HEAD_WIDTH}; pass a config")
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
    stated, read = find_tokenizer(path, weights, config, image_size)
    with unfilled():
        model = Tokenizer(stated)
    load_into(model, read(), str(path), assign=True)
    return model.eval().requires_grad_(False).to(device)


def find_tokenizer(
    path: str | Path, weights: str, config: Stated = None, image_size: int | None = None
) -> tuple[TokenizerConfig, Callable[[], dict[str, Tensor]]]:
    """The config of a tokenizer, and a function that reads its tensors; arguments as `tokenizer.load`."""
    if weights not in ORDER:
        raise UserError(f"weights got {weights!r}; a tokenizer has ema or model")
    found = find(path, ORDER[weights], lambda tensors: _family(tensors) is not None)
    if found.config is not None:
        stated, read = _as_config(found.config), found.read
        if config is not None and _as_config(config) != stated:
            raise UserError(f"the config given is not the one of {str(found.path)!r}; leave it out")
    else:
        stated, read = _released(found, config)
    if image_size not in (None, stated.image_size):
        # Released convolutional files do not say which size they were trained with.
        if found.config is not None or not lookup("tokenizer.encoders:ENCODERS", stated.encoder["name"]).any_size:
            raise UserError(
                f"--image-size is {image_size}, tokenizer {str(path)!r} has {stated.image_size}; leave it out"
            )
        stated = dataclasses.replace(stated, image_size=image_size)
    return stated, read


def _as_config(config: TokenizerConfig | Mapping[str, Any] | str | Path) -> TokenizerConfig:
    return config if isinstance(config, TokenizerConfig) else resolve(TokenizerConfig, model_part(config), "model")


def _released(found: Found, config: Stated) -> tuple[TokenizerConfig, Callable[[], dict[str, Tensor]]]:
    """A file without a config beside it: `config` describes it, or, as None or a mapping of changes, its shapes do."""
    path = found.path
    stated = _as_config(config) if isinstance(config, TokenizerConfig | str | Path) else None
    name = stated.encoder["name"] if stated else family(found.mapped, str(path))

    def ours(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_released(tensors, name) if any(map(RELEASED_NAMES.match, tensors)) else tensors

    tensors = ours(found.mapped)
    if stated:
        return _with_its_layout(stated, tensors, path), lambda: ours(found.read())
    try:
        recognised = _as_config(merge(tokenizer_config(tensors, name), config or {}))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{str(path)!r} looks like a {name} tokenizer but misses {error}; pass its config") from error
    where = f" (its {found.part!r})" if found.part else ""
    print(f"{path}{where}: {_describe(recognised)}", file=sys.stderr)
    return recognised, lambda: ours(found.read())


def _with_its_layout(config: TokenizerConfig, tensors: Mapping[str, Tensor], path: Path) -> TokenizerConfig:
    """ReTok and GigaTok ship configs of one name: the file decides whether there are redundant tokens."""
    stated, redundant = config.layout.redundant, _redundant(tensors)
    if redundant == stated:
        return config
    print(f"{path}: has {redundant} redundant tokens, not {stated} as its config says", file=sys.stderr)
    return dataclasses.replace(config, layout=dataclasses.replace(config.layout, redundant=redundant))


def _describe(config: TokenizerConfig) -> str:
    quantizer, layout = config.quantizer, config.layout
    spare = f" and {layout.redundant} redundant" if layout.redundant else ""
    tokens = f"{layout.num_tokens}{spare} tokens, " if config.encoder["name"] != "cnn" else ""
    codes = f"{quantizer['codebook_size']} x {quantizer['codebook_dim']} codes"
    return f"recognised a {config.encoder['name']} tokenizer, {config.image_size} pixels, {tokens}{codes}"


def write_released(model: Tokenizer, path: str | Path) -> None:
    """Write a file in the papers' layout: `{"model": state dict}`, under the released names."""
    tensors = to_released(model.state_dict(), model.config.encoder["name"])
    torch.save({"model": {key: value.detach().cpu().contiguous() for key, value in tensors.items()}}, path)
