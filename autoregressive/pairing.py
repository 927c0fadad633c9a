"""Do the tokenizer, the generator and the options of a command belong together?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import autoregressive
from autoregressive.loading import read_generator
from autoregressive.models.gpt import GPT
from common.checkpoint import MANIFEST, resolve_folder
from common.errors import UserError
from tokenizer.model import Tokenizer

__all__ = ["class_names", "load_generator"]


def load_generator(
    path: str | Path, weights: str, device: torch.device, tokenizer: Tokenizer, size: str | None = None,
    stated: Mapping[str, Any] | None = None,
) -> GPT:
    """`autoregressive.load`, for a generator whose codes `tokenizer` can decode; `stated`: parts of its config.

    Raises: UserError if codebooks or lengths do not fit, or the size is not the one that was stated.
    """
    config = stated
    if resolve_folder(path).is_file() and read_generator(path, weights)[0].get("positions") == "rope2d":
        config = {"num_tokens": tokenizer.num_tokens, **(stated or {})}  # Their files fit any grid.
    model = autoregressive.load(path, weights, device, config)
    if model.codebook_size != tokenizer.codebook_size or model.num_tokens > tokenizer.num_tokens:
        raise UserError(
            f"generator {str(path)!r} makes {model.num_tokens} codes below {model.codebook_size}, this tokenizer takes "
            f"{tokenizer.num_tokens} below {tokenizer.codebook_size}; pass the --vq-ckpt that made its training codes"
        )
    own = getattr(model.config, "size", type(model).__name__)
    if size and size.removeprefix("GPT-") != own.removeprefix("GPT-"):
        raise UserError(f"--gpt-model is {size}, {str(path)!r} holds size {own}; leave the flag out")
    return model


def class_names(path: str | Path, num_classes: int) -> list[str]:
    """Names of the classes a generator was trained on; their numbers where the checkpoint does not say."""
    manifest = resolve_folder(path) / MANIFEST
    known = (json.loads(manifest.read_text()).get("classes") if manifest.is_file() else None) or []
    return [*known, *(str(number) for number in range(len(known), num_classes))]
