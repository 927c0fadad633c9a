"""A generator's config from the names and shapes of its tensors, for files that do not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from autoregressive.models.gpt import SIZES
from autoregressive.models.rar import SIZES as RAR_SIZES
from autoregressive.models.rar import SPARE_POSITIONS
from common.config import merge
from common.errors import UserError

DROPPED = re.compile(r"freqs_cis|layers\.\d+\.attention\.kv_cache\.[kv]_cache")
"""What older files hold besides weights: a rotary table, and caches of a model that was saved after sampling."""


def generator_config(
    tensors: Mapping[str, Tensor], args: Mapping[str, Any], stated: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The `model` part of a config. `args`: settings the file holds beside its weights; `stated` overrides.

    Raises: UserError for anything but a GPT or RAR, or a GPT of no released size whose heads are not stated.
    """
    if "tok_embeddings.weight" in tensors and "output.weight" in tensors:
        config = merge(_gpt(tensors, args), stated)
        if not {"size", "heads"} & config.keys():
            raise UserError(f"{source} holds a GPT of no released size: pass its number of attention heads as a config")
        return config
    if "target_aware_pos_embed" in tensors:
        return merge(_rar(tensors), stated)
    raise UserError(
        f"{source} holds no generator known here (its first keys: {', '.join(list(tensors)[:3])}); "
        "a tokenizer belongs to --vq-ckpt, other generators need a config of their own"
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    found = [re.match(pattern, key) for key in tensors]
    return max(int(match[1]) for match in found if match) + 1


def _gpt(tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> dict[str, Any]:
    codebook_size, width = tensors["tok_embeddings.weight"].shape
    layers = _count(tensors, r"layers\.(\d+)\.")
    named = next((name for name, size in SIZES.items() if size[:2] == (width, layers)), None)
    config: dict[str, Any] = {"name": "gpt", "codebook_size": codebook_size}
    config |= {"size": named} if named else {"width": width, "layers": layers, **_heads(tensors, width)}
    config["multiple_of"] = _multiple(width, tensors["layers.0.feed_forward.w1.weight"].shape[0])
    table = tensors.get("positional_embedding")
    config["positions"] = "rope2d" if table is None else "learned"
    config["num_tokens"] = _grid_tokens(args) if table is None else table.shape[0] - 1
    captions = tensors.get("cls_embedding.uncond_embedding")
    if captions is None:
        config["num_classes"] = tensors["cls_embedding.embedding_table.weight"].shape[0] - 1
    else:
        config |= {"condition": "caption", "caption_tokens": captions.shape[0], "caption_width": captions.shape[1]}
    config["qk_norm"] = "layers.0.attention.q_norm.weight" in tensors
    simple, full = "layers.0.ada_gss" in tensors, "layers.0.adaLN_modulation.1.weight" in tensors
    return config | {"adaln": "simple" if simple else "full" if full else "none"}


def _heads(tensors: Mapping[str, Tensor], width: int) -> dict[str, int]:
    norm = tensors.get("layers.0.attention.q_norm.weight")
    return {} if norm is None else {"heads": width // norm.shape[0]}


def _multiple(width: int, hidden: int) -> int:
    """The largest power of two that the feed-forward's width was rounded up to."""
    wanted = int(8 * width / 3)
    return next((m for m in (256, 128, 64, 32, 16, 8, 4, 2, 1) if -(-wanted // m) * m == hidden), 1)


def _grid_tokens(args: Mapping[str, Any]) -> int:
    """Rotary tables are in no file: the trainer's settings tell the grid, else it is 16 x 16."""
    image, stride = args.get("image_size"), args.get("downsample_size")
    return (image // stride) ** 2 if isinstance(image, int) and isinstance(stride, int) and stride > 0 else 256


def _rar(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    codebook_size, width = tensors["lm_head.weight"].shape
    sizes = (
        width, _count(tensors, r"blocks\.(\d+)\."), width // tensors["blocks.0.attn.q_norm.weight"].shape[0],
        tensors["blocks.0.mlp.fc1.weight"].shape[0],
    )  # fmt: skip
    named = next((name for name, size in RAR_SIZES.items() if size == sizes), None)
    config: dict[str, Any] = {"name": "rar", "codebook_size": codebook_size}
    config |= {"size": named} if named else dict(zip(("width", "layers", "heads", "ffn_width"), sizes, strict=True))
    return config | {
        "num_tokens": tensors["pos_embed"].shape[1] - SPARE_POSITIONS,
        "num_classes": tensors["embeddings.weight"].shape[0] - codebook_size - 2,
    }
