"""Generators from wherever they are kept; see `autoregressive.load`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.recognise import DROPPED, generator_config
from common.checkpoint import load_into, read_config, read_weights, resolve_folder
from common.config import build, merge, read_yaml
from common.errors import UserError
from common.meta import unfilled
from common.weights import read_released

__all__ = ["load_generator", "read_generator", "write_released"]

TABLE = "autoregressive.models:GENERATORS"
ORDER = {"model": ("model", "module", "state_dict"), "ema": ("ema",)}

Stated = Mapping[str, Any] | str | Path | None


def load_generator(path: str | Path, weights: str, device: str | torch.device, config: Stated) -> nn.Module:
    """See `autoregressive.load`. Weights are mapped from the disk, not copied, until they are moved or changed."""
    stated, tensors = read_generator(path, weights, config)
    with unfilled():
        model = build(TABLE, stated)
    load_into(model, tensors, str(path), assign=True)
    return model.eval().requires_grad_(False).to(device)


def read_generator(path: str | Path, weights: str, config: Stated = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `model` part of the config, and the tensors, of a checkpoint folder, a run, a released file or a hub id."""
    if weights not in ORDER:
        raise UserError(f"weights got {weights!r}; a generator has model or ema")
    found = resolve_folder(path)
    if not found.is_file():
        own = read_config(found)["model"]
        return merge(own, stated_config(config)), read_weights(found, weights)
    released = read_released(found, ORDER[weights])
    tensors = {key: value for key, value in released.tensors.items() if not DROPPED.fullmatch(key)}
    beside = found.with_name("config.json")
    if found.name == "model.safetensors" and beside.is_file():
        own = read_config(found.parent)["model"]
        return merge(own, stated_config(config)), tensors
    try:
        # What shapes cannot show, such as the number of codes of a 2D model, is what a config is passed for.
        recognised = generator_config(tensors, released.args, stated_config(config), str(found))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{str(found)!r} looks like a generator but misses {error}; pass its config") from error
    if config is not None:
        return recognised, tensors
    told = ("size", "positions", "num_tokens")
    shown = ", ".join(f"{key} {value}" for key, value in recognised.items() if key in told)
    print(f"{found}: recognised a {recognised['name']} generator, {shown}", file=sys.stderr)
    return recognised, tensors


def stated_config(config: Stated) -> Mapping[str, Any]:
    """The `model` part of a YAML file, or (part of) that part itself; nothing for None."""
    return read_yaml(config).get("model", {}) if isinstance(config, str | Path) else config or {}


def write_released(model: nn.Module, path: str | Path) -> None:
    """The papers' layout: RAR's a bare state dict, the GPTs' `{"model": state dict}`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    torch.save(tensors if hasattr(model, "target_aware_pos_embed") else {"model": tensors}, path)
