"""Things so small that a job takes a second: images of three colours, an untrained tokenizer, a generator."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common import checkpoint, config
from common.config import build
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

CNN = {"channels": 32, "multipliers": [1, 1], "patch": 4}
WIDTHS = {"width": 32, "layers": 1, "heads": 2}
TOKENIZER: dict[str, Any] = {
    "image_size": 32, "z_channels": 32, "layout": {"num_tokens": 16, "redundant": 8},
    "encoder": {"name": "tokenizer.tiny:Tiny1dEncoder", "cnn": CNN, "transformer": WIDTHS},
    "decoder": {
        "name": "tokenizer.tiny:Tiny1dDecoder", "cnn": CNN, "transformer": WIDTHS,
        "semantic_head": {"depth": 1, "width": 32},
    },
    "quantizer": {"name": "vq", "codebook_size": 64},
}
COLOURS = {"apple": (200, 40, 40), "bird": (40, 200, 40), "cat": (40, 40, 200)}


def write_images(root: Path, counts: tuple[int, int, int] = (4, 3, 4), side: tuple[int, int] = (44, 50)) -> Path:
    """`root`/<class>/<i>.png: noise around the class's colour."""
    rng = np.random.default_rng(0)
    for (name, colour), count in zip(COLOURS.items(), counts, strict=True):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 41, (3, 3, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize(side).save(root / name / f"{index}.png")
    return root


def save_tokenizer(run: Path, **changes: Any) -> Path:
    """An untrained tokenizer as a run with one checkpoint; its codes differ from image to image."""
    settings = config.resolve(TokenizerConfig, {**TOKENIZER, **changes})
    torch.manual_seed(0)
    model = Tokenizer(settings)
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.mul_(5)
        model.quant_conv.bias.zero_()
    checkpoint.save(run, 1, {"model": model.state_dict()}, {}, {"model": dataclasses.asdict(settings)})
    return run


def save_generator(run: Path, **changes: Any) -> Path:
    """A generator with a random head as a run with one checkpoint."""
    stated = {"name": "gpt", "size": "tiny", "codebook_size": 64, "num_tokens": 16, "num_classes": 3, **changes}
    torch.manual_seed(1)
    model = build("autoregressive.models:GENERATORS", stated)
    for head in (module for name, module in model.named_modules() if name in ("output", "lm_head")):
        torch.nn.init.normal_(head.weight, std=0.3)
    meta = {"classes": list(COLOURS)}
    checkpoint.save(run, 1, {"model": model.state_dict()}, {}, {"model": stated}, meta)
    return run


def read_npz(path: Path) -> np.ndarray:
    """The images of a packed file, uint8 (N,H,W,3)."""
    with np.load(path) as file:
        return file["arr_0"]
