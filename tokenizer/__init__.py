"""Image tokenizers. `tokenizer.load(path)` is the front door."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tokenizer.model import Tokenizer


def load(path: str | Path, weights: str = "ema", device: str | torch.device = "cpu") -> Tokenizer:
    """A trained tokenizer in eval mode, from a checkpoint folder or a run (its newest complete checkpoint).

    `weights`: "ema" (falls back to "model" when the run kept no average) or "model".

    Raises: UserError when there is no complete checkpoint, or its weights do not fit its config.
    """
    from common.checkpoint import read_config, resolve_folder
    from common.config import resolve
    from tokenizer.config import TokenizerConfig
    from tokenizer.model import Tokenizer

    folder = resolve_folder(path)
    tokenizer = Tokenizer(resolve(TokenizerConfig, read_config(folder)["model"], where="model"))
    load_weights(tokenizer, folder, weights)
    return tokenizer.eval().requires_grad_(False).to(device)


def load_weights(tokenizer: Tokenizer, path: str | Path, weights: str) -> None:
    """Strictly load a checkpoint's weights into an existing tokenizer."""
    from common.checkpoint import load_into, read_weights, resolve_folder

    folder = resolve_folder(path)
    if weights == "ema" and not (folder / "ema.safetensors").is_file():
        weights = "model"
    load_into(tokenizer, read_weights(folder, weights), str(folder))
