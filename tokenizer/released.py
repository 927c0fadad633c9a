"""Tokenizers in files of any origin: recognised by keys and shapes, renamed, loaded. See `tokenizer.load`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
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
from tokenizer.families import BY_NAME, family_of, recognised
from tokenizer.families.hybrid import redundant
from tokenizer.model import Tokenizer

Value = TypeVar("Value")


def from_released(tensors: Mapping[str, Value], family: str) -> dict[str, Value]:
    """A released state dict under our keys; `family` is a name in `tokenizer.families`."""
    return BY_NAME[family].rename(tensors)


def to_released(tensors: Mapping[str, Value], family: str) -> dict[str, Value]:
    """Inverse of `from_released`."""
    return BY_NAME[family].restore(tensors)


ORDER = {
    "ema": ("ema", "model", "state_dict", "vq", "trainer.vae_local"),
    "model": ("model", "state_dict", "vq", "trainer.vae_local"), "vq_ema": ("vq_ema",),
}  # fmt: skip
"""Keys of a file, in the order in which they are preferred. GEAR's tokenizer is `vq`; VAR's trainer nests its own."""

Stated = TokenizerConfig | Mapping[str, Any] | str | Path | None


def load_tokenizer(
    path: str | Path, weights: str, device: str | torch.device, config: Stated, image_size: int | None = None
) -> Tokenizer:
    """See `tokenizer.load`. Weights are mapped from the disk, not copied, until they are moved or changed."""
    stated, read = find_tokenizer(path, weights, config, image_size)
    with unfilled():
        model = Tokenizer(stated)
    load_into(model, read(), str(path), assign=True)
    model.source = str(path)
    return model.eval().requires_grad_(False).to(device)


def find_tokenizer(
    path: str | Path, weights: str, config: Stated = None, image_size: int | None = None
) -> tuple[TokenizerConfig, Callable[[], dict[str, Tensor]]]:
    """The config of a tokenizer, and a function that reads its tensors; arguments as `tokenizer.load`."""
    if weights not in ORDER:
        raise UserError(f"weights got {weights!r}; a tokenizer has ema or model (a file of GEAR also vq_ema)")
    found = find(path, ORDER[weights], lambda tensors: recognised(tensors) is not None)
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
    if isinstance(config, TokenizerConfig | str | Path):
        stated = _as_config(config)
        family = recognised(found.mapped) or BY_NAME.get(stated.encoder["name"])
        ours = family.ours if family else dict
        return _with_its_layout(stated, ours(found.mapped), path), lambda: ours(found.read())
    family = family_of(found.mapped, str(path))
    if family.name == "taming" and (found.averaged or found.part in ("vq", "vq_ema")):
        family = BY_NAME["ibq"]  # taming's files have no averages, and are not among GEAR's
    try:
        shown = merge(family.config(family.ours(found.mapped)), family.stated(found.args))
        stated = _as_config(merge(shown, config or {}))
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} looks like a {family.name} tokenizer but misses {error}; pass its config"
        ) from error
    where = f" (its {found.part!r})" if found.part else ""
    print(f"{path}{where}: recognised {family.title}, {_describe(stated, found.mapped)}", file=sys.stderr)
    return stated, lambda: family.ours(found.read())


def _with_its_layout(config: TokenizerConfig, tensors: Mapping[str, Tensor], path: Path) -> TokenizerConfig:
    """ReTok and GigaTok ship configs of one name: the file decides whether there are redundant tokens."""
    stated, stored = config.layout.redundant, redundant(tensors)
    if stored == stated:
        return config
    print(f"{path}: has {stored} redundant tokens, not {stated} as its config says", file=sys.stderr)
    return dataclasses.replace(config, layout=dataclasses.replace(config.layout, redundant=stored))


def _describe(config: TokenizerConfig, tensors: Mapping[str, Tensor]) -> str:
    """Such as `83.7M parameters, 256 pixels, 128 tokens, 4096 x 12 codes`."""
    quantizer, layout = config.quantizer, config.layout
    spare = f" and {layout.redundant} redundant" if layout.redundant else ""
    is_1d = getattr(lookup("tokenizer.encoders:ENCODERS", config.encoder["name"]), "tokens_1d", False)
    tokens = f"{layout.num_tokens}{spare} tokens, " if is_1d or config.encoder["name"] == "dino_vit" else ""
    groups = f"{quantizer['groups']} times " if quantizer["name"] == "product" else ""
    inner = quantizer.get("part", quantizer)
    if inner["name"] == "kl":
        codes = f"{inner['dim']} channels without codes"
    else:
        dim = inner.get("codebook_dim") or inner["codebook_size"].bit_length() - 1
        codes = f"{groups}{inner['codebook_size']} x {dim} codes"
    size = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    return f"{size:,.1f}M parameters, {config.image_size} pixels, {tokens}{codes}"


def write_released(model: Tokenizer, path: str | Path) -> None:
    """Write a file in the papers' layout: `{"model": state dict}`, under the released names."""
    name = model.config.encoder["name"]
    if name not in BY_NAME or BY_NAME[name].restore is None:
        raise UserError(f"no released layout is written for encoder {name!r}; use save_pretrained instead")
    tensors = to_released(model.state_dict(), name)
    torch.save({"model": {key: value.detach().cpu().contiguous() for key, value in tensors.items()}}, path)
