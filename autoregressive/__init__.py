"""Autoregressive generators over image codes. `autoregressive.load(path)` is the front door."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from autoregressive.models.gpt import GPT


def load(
    path: str | Path,
    weights: str = "model",
    device: str | torch.device = "cpu",
    config: Mapping[str, Any] | str | Path | None = None,
) -> GPT:
    """A trained generator in eval mode, its weights in float32.

    `path`: a run (its newest complete checkpoint), a checkpoint folder, a folder with `model.safetensors` and
    `config.json`, a released `.pt`, `.bin` or `.safetensors` file, or a hub id. `weights`: "model" (what the papers
    sample from) or "ema", if there is an average. `config`: what the file's shapes cannot show, such as `num_tokens`
    of LlamaGen's 384-pixel models; a YAML file, or (part of) the `model` part of one.

    Raises: UserError when there is no complete checkpoint, no such weights, a file is damaged or holds anything but
    tensors and settings, or the weights do not fit the config.
    """
    from autoregressive.released import load_generator

    return load_generator(path, weights, device, config)
