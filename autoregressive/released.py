"""Generators in files of any origin: recognised by keys and shapes, loaded. See `autoregressive.load`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.models.gpt import GPT, SIZES
from autoregressive.models.rar import SIZES as RAR_SIZES
from autoregressive.models.rar import SPARE_POSITIONS
from common.checkpoint import load_into, resolve_folder
from common.config import build, merge
from common.errors import UserError
from common.hub import find, model_part
from common.meta import unfilled
from common.provenance import read_provenance
from tokenizer.frozen_codes import check_codes_of
from tokenizer.model import Tokenizer

MARKERS = ("tok_embeddings.weight", "target_aware_pos_embed")
"""Keys that only a GPT and only a RAR have."""
DROPPED = re.compile(r"freqs_cis|layers\.\d+\.attention\.kv_cache\.[kv]_cache")
"""Keys of older files that are not weights: a rotary table, and the caches of a model saved after sampling."""


def generator_config(
    tensors: Mapping[str, Tensor], args: Mapping[str, Any], stated: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The `model` part of a config. `args`: settings the file holds beside its weights; `stated` overrides.

    Raises: UserError for anything but a GPT or RAR, or a GPT of no released size whose heads are not stated.
    """
    if MARKERS[0] in tensors and "output.weight" in tensors:
        config = merge(_gpt(tensors, args), stated)
        if not {"size", "heads"} & config.keys():
            raise UserError(f"{source} holds a GPT of no released size: pass its number of attention heads as a config")
        return config
    if MARKERS[1] in tensors:
        return merge(_rar(tensors), stated)
    raise UserError(
        f"{source} holds no known generator (its first keys: {', '.join(list(tensors)[:3])}); "
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
    """The largest power of two that the feed-forward width was rounded up to."""
    wanted = int(8 * width / 3)
    return next((m for m in (256, 128, 64, 32, 16, 8, 4, 2, 1) if -(-wanted // m) * m == hidden), 1)


def _grid_tokens(args: Mapping[str, Any]) -> int:
    """Files hold no rotary tables: the grid follows from the trainer's settings, else it is 16 x 16."""
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


TABLE = "autoregressive.models:GENERATORS"
ORDER = {"model": ("model", "module", "state_dict"), "ema": ("ema",)}

Stated = Mapping[str, Any] | str | Path | None


def load_generator(path: str | Path, weights: str, device: str | torch.device, config: Stated) -> nn.Module:
    """See `autoregressive.load`. Weights are mapped from the disk, not copied, until they are moved or changed."""
    stated, read = find_generator(path, weights, config)
    with unfilled():
        model = build(TABLE, stated)
    load_into(model, read(), str(path), assign=True)
    model.source = str(path)
    return model.eval().requires_grad_(False).to(device)


def find_generator(
    path: str | Path, weights: str, config: Stated = None
) -> tuple[dict[str, Any], Callable[[], dict[str, Tensor]]]:
    """The `model` part of a generator's config, and a function that reads its tensors; arguments as
    `autoregressive.load`."""
    if weights not in ORDER:
        raise UserError(f"weights got {weights!r}; a generator has model or ema")
    found = find(path, ORDER[weights], lambda tensors: any(marker in tensors for marker in MARKERS))
    if found.config is not None:
        return merge(found.config, model_part(config)), found.read
    try:
        recognised = generator_config(found.mapped, found.args, model_part(config), str(found.path))
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{str(found.path)!r} looks like a generator but misses {error}; pass its config") from error
    if config is None:
        told = [key for key in ("size", "positions", "num_tokens") if key in recognised]
        shown = ", ".join(f"{key} {recognised[key]}" for key in told)
        print(f"{found.path}: recognised a {recognised['name']} generator, {shown}", file=sys.stderr)
    return recognised, lambda: {key: value for key, value in found.read().items() if not DROPPED.fullmatch(key)}


def write_released(model: nn.Module, path: str | Path) -> None:
    """Write a file in the papers' layout: a bare state dict for RAR, `{"model": state dict}` for GPTs."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    torch.save(tensors if MARKERS[1] in tensors else {"model": tensors}, path)


def load_compatible(
    path: str | Path, weights: str, device: torch.device, tokenizer: Tokenizer, size: str | None = None,
    stated: Mapping[str, Any] | None = None,
) -> GPT:
    """As `autoregressive.load`, for a generator whose codes `tokenizer` decodes; `stated`: parts of its config.

    Raises: UserError if codebooks or lengths do not fit, the generator was trained on the codes of another tokenizer,
    or its size is not `size`.
    """
    config = stated
    if resolve_folder(path).is_file() and find_generator(path, weights)[0].get("positions") == "rope2d":
        config = {"num_tokens": tokenizer.num_tokens, **(stated or {})}  # these files fit any grid
    model = load_generator(path, weights, device, config)
    if model.codebook_size != tokenizer.codebook_size or model.num_tokens > tokenizer.num_tokens:
        raise UserError(
            f"generator {str(path)!r} makes {model.num_tokens} codes below {model.codebook_size}, this tokenizer takes "
            f"{tokenizer.num_tokens} below {tokenizer.codebook_size}; pass the --vq-ckpt that made its training codes"
        )
    check_codes_of(read_provenance(path).get("codes_of"), tokenizer, f"generator {str(path)!r}")
    own = getattr(model.config, "size", type(model).__name__)
    if size and size.removeprefix("GPT-") != own.removeprefix("GPT-"):
        raise UserError(f"--gpt-model is {size}, {str(path)!r} holds size {own}; leave the flag out")
    return model


def class_names(path: str | Path, num_classes: int) -> list[str]:
    """Names of the classes a generator was trained on; their numbers if the checkpoint does not record them."""
    known = read_provenance(path).get("classes") or []
    return [*known, *(str(number) for number in range(len(known), num_classes))]
