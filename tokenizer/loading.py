"""Tokenizers from wherever they are kept; see `tokenizer.load`."""

from __future__ import annotations

import dataclasses
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
from tokenizer.recognise import family, tokenizer_config

__all__ = ["load_tokenizer", "read_tokenizer", "stated_config", "write_released"]

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
