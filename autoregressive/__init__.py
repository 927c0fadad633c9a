"""Autoregressive generators over image codes. `autoregressive.load(path)` is the front door."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from autoregressive.models.gpt import GPT


def load(path: str | Path, weights: str = "model", device: str | torch.device = "cpu") -> GPT:
    """A trained generator in eval mode, from a checkpoint folder or a run (its newest complete checkpoint).

    `weights`: "model" (what the papers sample from) or "ema", if the run kept an average.

    Raises: UserError when there is no complete checkpoint, no such weights, or they do not fit their config.
    """
    from common.checkpoint import load_into, read_config, read_weights, resolve_folder
    from common.config import build

    folder = resolve_folder(path)
    model = build("autoregressive.models:GENERATORS", read_config(folder)["model"])
    load_into(model, read_weights(folder, weights), str(folder))
    return model.eval().requires_grad_(False).to(device)
