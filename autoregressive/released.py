"""Generators from wherever they are kept; see `autoregressive.load`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.models.gpt import GPT, SIZES
from autoregressive.models.rar import SIZES as RAR_SIZES
from autoregressive.models.rar import SPARE_POSITIONS
from common.checkpoint import load_into, read_config, read_weights, resolve_folder
from common.config import build, merge, read_yaml
from common.errors import UserError
from common.meta import unfilled
from common.provenance import read_provenance
from common.weights import read_released
from tokenizer.frozen_codes import check_codes_of
from tokenizer.model import Tokenizer

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


def load_compatible(
    path: str | Path, weights: str, device: torch.device, tokenizer: Tokenizer, size: str | None = None,
    stated: Mapping[str, Any] | None = None,
) -> GPT:
    """`autoregressive.load`, for a generator whose codes `tokenizer` can decode; `stated`: parts of its config.

    Raises: UserError if codebooks or lengths do not fit, the generator was trained on the codes of another tokenizer,
    or its size is not the one that was stated.
    """
    config = stated
    if resolve_folder(path).is_file() and read_generator(path, weights)[0].get("positions") == "rope2d":
        config = {"num_tokens": tokenizer.num_tokens, **(stated or {})}  # Their files fit any grid.
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
    """Names of the classes a generator was trained on; their numbers where the checkpoint does not say."""
    known = read_provenance(path).get("classes") or []
    return [*known, *(str(number) for number in range(len(known), num_classes))]
