"""Convert a checkpoint: `python -m autoregressive.convert IN OUT`.

IN is a released file, a run, a checkpoint folder or a hub id; a tokenizer or a generator. OUT ending in .pt, .pth or
.bin is written in the papers' layout, any other OUT becomes a folder with model.safetensors and config.json."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import takewhile

from common import config
from common.config import MISSING, opt
from common.errors import UserError


@dataclass
class ConvertConfig:
    """Everything `python -m autoregressive.convert` reads."""

    source: str = opt(MISSING, "what to convert (the first word)")
    out: str = opt(MISSING, "where to (the second word)")
    weights: str | None = opt(None, "model | ema; null = ema of tokenizers where there is one, model of generators")
    model_yaml: str | None = opt(None, "config of the model, for files whose shapes do not tell all of it")


def with_positions(words: list[str], names: tuple[str, ...]) -> list[str]:
    """The bare words that a command line starts with, as the flags `names` in turn; the rest as it is."""
    bare = list(takewhile(lambda word: not word.startswith("-") and "=" not in word, words))
    if len(bare) > len(names):
        raise UserError(f"got {len(bare)} words ({' '.join(bare)}); expected {' '.join(names).upper()}")
    flags = [word for name, value in zip(names, bare, strict=False) for word in (f"--{name}", value)]
    return flags + words[len(bare) :]


def main() -> None:
    settings = config.parse(ConvertConfig, with_positions(sys.argv[1:], ("source", "out")), about=__doc__)
    from autoregressive.converter import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
