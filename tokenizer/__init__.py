"""Image tokenizers. `tokenizer.load(path)` is the front door."""

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
    """A trained tokenizer in eval mode, its weights in float32.

    `path`: a run (its newest complete checkpoint), a checkpoint folder, a folder with `model.safetensors` and
    `config.json`, a released `.pt`, `.bin` or `.safetensors` file, or a hub id. `weights`: "ema" (falls back to "model"
    where there is no average) or "model". Without `config` a file's config is recognised from its
    shapes, and a line on stderr says as what; a mapping changes single keys of what was recognised (`{"image_size":
    384}`), a YAML file (whose `model` counts) or a `TokenizerConfig` replaces it. `image_size`: pixels a side that the
    caller counts on; released convolutional files, which take any, are set to it.

    Raises: UserError when there is no complete checkpoint, a file is damaged or holds anything but tensors and
    settings, the weights do not fit the config, or a checkpoint's own config or image size is another.
    """
    from tokenizer.released import load_tokenizer

    return load_tokenizer(path, weights, device, config, image_size)


def load_weights(tokenizer: Tokenizer, path: str | Path, weights: str) -> None:
    """Strictly load a checkpoint's weights into an existing tokenizer."""
    from common.checkpoint import load_into
    from tokenizer.released import read_tokenizer

    _, tensors = read_tokenizer(path, weights)
    load_into(tokenizer, tensors, str(path))
