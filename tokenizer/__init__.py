"""Image tokenizers. `tokenizer.load(path)` loads one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tokenizer.config import TokenizerConfig
    from tokenizer.model import Tokenizer


def load(
    path: str | Path,
    weights: str = "ema",
    device: str | torch.device = "cpu",
    config: TokenizerConfig | Mapping[str, Any] | str | Path | None = None,
    image_size: int | None = None,
) -> Tokenizer:
    """Load a trained tokenizer in eval mode, with float32 weights.

    path: a run (its newest complete checkpoint), a checkpoint folder, a folder with `model.safetensors` and
        `config.json`, a hub id, or a checkpoint file of any name: safetensors, or written by `torch.save` (also by
        Lightning).
    weights: "ema" or "model". "ema" falls back to "model" if there is no average.
    config: None recognises a file's config from its shapes and prints it to stderr. A mapping changes single keys of
        the recognised config, such as `{"image_size": 384}`; a YAML file (its `model` part) or a `TokenizerConfig`
        replaces it.
    image_size: the expected side of the images, pixels. Released convolutional files, which take any size, are set to
        it; other tokenizers must have it.

    Raises: UserError when there is no complete checkpoint, the file is damaged or holds other things than tensors and
    settings, the weights do not fit the config, or the checkpoint has another config or image size.
    """
    from tokenizer.released import load_tokenizer

    return load_tokenizer(path, weights, device, config, image_size)


def load_weights(tokenizer: Tokenizer, path: str | Path, weights: str) -> None:
    """Strictly load a checkpoint's weights into an existing tokenizer."""
    from common.checkpoint import load_into
    from tokenizer.released import find_tokenizer

    _, read = find_tokenizer(path, weights)
    load_into(tokenizer, read(), str(path))
