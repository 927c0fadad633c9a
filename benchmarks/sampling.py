"""Sampling and extraction: our code beside plain eager code, both in float32 and both in bf16."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoregressive.config import Sampling
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.sample import ImageSampler
from benchmarks.plain_sampler import plain_codes
from benchmarks.timing import DTYPES, Work, compare
from benchmarks.training import STAND_INS
from common import config
from common.images import from_pixels, to_pixels
from common.numerics import autocast
from tokenizer.config import TrainConfig
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer

__all__ = ["extraction", "images", "sampling"]

GUIDANCE = Guidance(scale=1.5, schedule="step", window_start=0.18)
CASES = {"cpu": [("B", 8, 64), ("B", 32, 64)], "cuda": [("B", 128, 256), ("L", 128, 256)]}
"""Device -> size of the GPT, images per batch, codes per image."""
CONFIGS = Path(__file__).parents[1] / "configs" / "vq"
IMAGES = {"cpu": ("B", "VQ_SS256_retok", 8, 64), "cuda": ("L", "VQ_SB256", 128, 256)}
"""Device -> size of the GPT, config of the tokenizer, images per batch, codes per image."""
EXTRACTED = {"cpu": 4, "cuda": 64}
"""Device -> images per batch of the extraction."""


class _NoTokenizer(torch.nn.Module):
    """For measurements that stop at the codes."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def sampling(device: torch.device, cases: list[tuple[str, int, int]] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Codes per second, guidance 1.5 with schedule `step` from 0.18 on."""
    found = {}
    for size, batch, num_tokens in cases or CASES[device.type]:
        model, labels = _gpt(size, num_tokens, device), torch.arange(batch, device=device)
        for precision, dtype in DTYPES.items():
            plain, sampler = deepcopy(model).to(dtype), _sampler(deepcopy(model), _NoTokenizer(), precision)
            ways = {
                "plain": lambda m=plain, x=labels, n=num_tokens: plain_codes(m, x, n, GUIDANCE),
                "ours": lambda s=sampler, x=labels, n=num_tokens: s.codes(x, x, GUIDANCE, Sampling(), 0, n),
            }
            work = _work(model, batch, num_tokens, dtype.itemsize)
            found[f"GPT-{size}, {batch} images of {num_tokens} codes, {precision}"] = compare(
                ways, batch * num_tokens, device, repeats=repeats, work=work, precision=precision
            )
    return found


def images(device: torch.device, case: tuple[str, str, int, int] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Images per second from labels to uint8 pixels."""
    size, name, batch, num_tokens = case or IMAGES[device.type]
    tokenizer = _tokenizer(name, device)
    model, labels = _gpt(size, num_tokens, device, tokenizer.codebook_size), torch.arange(batch, device=device)
    found = {}
    for precision, dtype in DTYPES.items():
        plain = deepcopy(model).to(dtype)
        sampler = _sampler(deepcopy(model), deepcopy(tokenizer), precision)
        ways = {
            "plain": lambda p=plain, d=precision: _plain_images(tokenizer, p, labels, num_tokens, d),
            "ours": lambda s=sampler: s.pixels(s.codes(labels, labels, GUIDANCE, Sampling(), 0, num_tokens)),
        }
        found[f"GPT-{size} and {name}, {batch} images of {num_tokens} codes, {precision}"] = compare(
            ways, batch, device, repeats=repeats
        )
    return found


def extraction(device: torch.device, name: str = "VQ_SS256", repeats: int = 5) -> dict[str, Any]:
    """Images per second from uint8 pixels to codes."""
    count, found = EXTRACTED[device.type], {}
    tokenizer = _tokenizer(name, device)
    pixels = torch.randint(0, 256, (count, *[tokenizer.image_size] * 2, 3), dtype=torch.uint8, device=device)
    for precision in DTYPES:
        ours = Inference(deepcopy(tokenizer), precision).encode

        def plain(precision: str = precision) -> torch.Tensor:
            with torch.no_grad(), autocast(precision, device):
                return tokenizer.encode(from_pixels(pixels))

        found[f"{name}, {count} images, {precision}"] = compare(
            {"plain": plain, "ours": lambda encode=ours: encode(pixels)}, count, device, repeats=repeats
        )
    return found


@torch.no_grad()
def _plain_images(
    tokenizer: Tokenizer, model: GPT, labels: torch.Tensor, num_tokens: int, precision: str
) -> np.ndarray:
    codes = plain_codes(model, labels, num_tokens, GUIDANCE)
    with autocast(precision, labels.device):
        return to_pixels(tokenizer.decode(codes))


def _tokenizer(name: str, device: torch.device) -> Tokenizer:
    settings = config.parse(TrainConfig, ["--config", str(CONFIGS / f"{name}.yaml"), *STAND_INS])
    return Tokenizer(settings.model).eval().requires_grad_(False).to(device)


def _sampler(model: GPT, tokenizer: torch.nn.Module, precision: str) -> ImageSampler:
    on_gpu = next(model.parameters()).device.type == "cuda"
    return ImageSampler(model, tokenizer, precision, precision, compile=on_gpu)


def _gpt(size: str, num_tokens: int, device: torch.device, codebook_size: int = 16384) -> GPT:
    model = GPT(GPT.Config(size=size, codebook_size=codebook_size, num_tokens=num_tokens, num_classes=1000)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)  # initialised to zero, which may be faster to multiply
    return model.requires_grad_(False).to(device)


def _work(model: GPT, batch: int, num_tokens: int, itemsize: int) -> Work:
    """Every matrix is read once per code and multiplied with both halves; the filled part of the cache is read."""
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    rows = 2 * batch
    cached = 2 * rows * model.num_layers * model.width * num_tokens * (num_tokens + 1) / 2
    flops = 2 * weights * rows * num_tokens + 2 * cached
    return Work(flops, itemsize * (weights * num_tokens + cached))
