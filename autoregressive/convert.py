"""Convert a checkpoint: `python -m autoregressive.convert IN OUT`.

IN is a tokenizer or generator: a checkpoint file, a run, a checkpoint folder or a hub id. An OUT that ends in .pt, .pth
or .bin is written in the papers' layout; any other OUT becomes a folder with model.safetensors and config.json."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from autoregressive import released as generators
from common import config
from common.config import MISSING, opt
from common.errors import UserError
from common.hub import find
from tokenizer import released as tokenizers
from tokenizer.model import Tokenizer


@dataclass
class ConvertConfig:
    """Everything `python -m autoregressive.convert` reads."""

    source: str = opt(MISSING, "checkpoint to convert (the first word)")
    out: str = opt(MISSING, "file or folder to write (the second word)")
    weights: str | None = opt(None, "model | ema; null = ema for tokenizers that have one, model for generators")
    model_yaml: str | None = opt(None, "config of the model, for files whose shapes do not show all of it")


def with_positions(words: list[str], names: tuple[str, ...]) -> list[str]:
    """The bare words at the start of a command line as the flags `names`, in order; the rest unchanged."""
    bare = list(takewhile(lambda word: not word.startswith("-") and "=" not in word, words))
    if len(bare) > len(names):
        raise UserError(f"got {len(bare)} words ({' '.join(bare)}); expected {' '.join(names).upper()}")
    flags = [word for name, value in zip(names, bare, strict=False) for word in (f"--{name}", value)]
    return flags + words[len(bare) :]


FILES = (".pt", ".pth", ".bin")


def load_any(path: str, weights: str | None, model_yaml: str | None) -> nn.Module:
    """The model at a path: a tokenizer if it has an encoder, else a generator."""
    found = find(path, ("model", "ema", "module", "state_dict"), lambda _: True)
    if any(key.startswith("encoder") for key in found.config or found.mapped):
        return tokenizers.load_tokenizer(path, weights or "ema", "cpu", model_yaml)
    return generators.load_generator(path, weights or "model", "cpu", model_yaml)


def run(config: ConvertConfig) -> Path:
    """The job behind `python -m autoregressive.convert`: returns the path of the result."""
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{config.out!r} exists; choose another OUT or remove it")
    model = load_any(config.source, config.weights, config.model_yaml)
    kind = "tokenizer" if isinstance(model, Tokenizer) else "generator"
    if out.suffix in FILES:
        write = tokenizers.write_released if kind == "tokenizer" else generators.write_released
        _whole(out, lambda partial: write(model, partial))
    else:
        _whole(out, model.save_pretrained)
    count = sum(value.numel() for value in model.parameters())
    print(f"{out}: a {kind} of {count:,} parameters, {len(model.state_dict())} tensors")
    return out


def _whole(out: Path, write: Callable[[Path], None]) -> None:
    """Write atomically: to `<out>.partial`, then rename."""
    partial = out.with_name(out.name + ".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_dir():
        shutil.rmtree(partial)
    try:
        with torch.no_grad():
            write(partial)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(out)!r} could not be written ({reason}); free space or choose another OUT") from error
    os.replace(partial, out)


def main() -> None:
    settings = config.parse(ConvertConfig, with_positions(sys.argv[1:], ("source", "out")), about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
