"""Autoregressive generators over image codes. `autoregressive.load(path)` loads one."""

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
    """Load a trained generator in eval mode, with float32 weights.

    path: as `tokenizer.load` takes it.
    weights: "model" (the papers sample from it) or "ema", if there is an average.
    config: what the shapes of a file do not show, such as `num_tokens` of LlamaGen's 384-pixel models: a YAML file, or
        (part of) the `model` part of one.

    Raises: UserError when there is no complete checkpoint, there are no such weights, the file is damaged or holds
    other things than tensors and settings, or the weights do not fit the config.
    """
    from autoregressive.released import load_generator

    return load_generator(path, weights, device, config)
