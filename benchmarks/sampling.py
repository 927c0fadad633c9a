"""Sampling codes: our sampler beside the originals' way, and how its time grows with the number of images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from autoregressive.config import Sampling
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.sample import ImageSampler
from benchmarks.plain_sampler import plain_codes
from benchmarks.timing import Work, compare, median_seconds
from benchmarks.training import STAND_INS
from common import config
from common.log import peak_memory_gb
from tokenizer.config import TrainConfig
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer

__all__ = ["images", "sampling", "sampling_growth"]

GUIDANCE = Guidance(scale=1.5, schedule="step", window_start=0.18)
CASES = {"cpu": [("B", 8, 64), ("B", 32, 64)], "cuda": [("B", 128, 256), ("L", 128, 256)]}
"""Device -> size of the GPT, images at once, codes an image."""
TOKENIZERS = Path(__file__).parents[1] / "configs" / "vq"
IMAGES = {"cpu": ("B", "VQ_SS256_retok", 8, 64), "cuda": ("L", "VQ_SB256", 128, 256)}
"""Device -> size of the GPT, the tokenizer's config, images at once, codes an image."""


class _NoTokenizer(torch.nn.Module):
    """Where codes are all that is made."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def sampling(device: torch.device, cases: list[tuple[str, int, int]] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Codes a second, guidance 1.5 `step` from 0.18 on; both in this process, plain in float32, ours in bf16."""
    return {
        f"GPT-{size}, {batch} images of {num_tokens} codes": _case(size, batch, num_tokens, device, repeats)
        for size, batch, num_tokens in cases or CASES[device.type]
    }


def _case(size: str, batch: int, num_tokens: int, device: torch.device, repeats: int) -> dict[str, Any]:
    model = _gpt(size, num_tokens, device)
    labels = torch.arange(batch, device=device)
    sampler = _sampler(deepcopy(model), _NoTokenizer())
    return compare(
        lambda: plain_codes(model, labels, num_tokens, GUIDANCE),
        lambda: sampler.codes(labels, labels, GUIDANCE, Sampling(), 0, num_tokens),
        batch * num_tokens, device, repeats=repeats, work=_work(model, batch, num_tokens),
    )  # fmt: skip


def images(device: torch.device, case: tuple[str, str, int, int] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Images a second from labels to uint8 pixels; plain decodes in float32, too."""
    size, name, batch, num_tokens = case or IMAGES[device.type]
    settings = config.parse(TrainConfig, ["--config", str(TOKENIZERS / f"{name}.yaml"), *STAND_INS])
    tokenizer = Tokenizer(settings.model).eval().requires_grad_(False).to(device)
    model, labels = _gpt(size, num_tokens, device, tokenizer.codebook_size), torch.arange(batch, device=device)
    sampler, plain = _sampler(deepcopy(model), deepcopy(tokenizer)), Inference(tokenizer)

    def ours() -> None:
        sampler.pixels(sampler.codes(labels, labels, GUIDANCE, Sampling(), 0, num_tokens))

    found = compare(
        lambda: plain.decode(plain_codes(model, labels, num_tokens, GUIDANCE)), ours, batch, device, repeats=repeats
    )
    return {f"GPT-{size} and {name}, {batch} images of {num_tokens} codes": found}


def sampling_growth(device: torch.device, counts: tuple[int, ...] = (8, 16, 32, 64)) -> dict[str, Any]:
    """Seconds for 8 to 64 images in batches of 8, and this process's peak memory after each."""
    model = _gpt("B", 64, device)
    sampler = _sampler(model, _NoTokenizer())

    def draw(count: int) -> None:
        for start in range(0, count, 8):
            ids = torch.arange(start, start + 8, device=device)
            sampler.codes(ids, ids, GUIDANCE, Sampling(), 0, 64)

    rows = {}
    for count in counts:
        seconds = median_seconds(lambda: draw(count), device, repeats=3)  # noqa: B023
        rows[count] = {"seconds": seconds, "seconds_per_image": seconds / count, "peak_memory_gb": peak_memory_gb()}
    return rows


def _sampler(model: GPT, tokenizer: torch.nn.Module) -> ImageSampler:
    on_gpu = next(model.parameters()).device.type == "cuda"
    return ImageSampler(model, tokenizer, "bf16", "bf16", compile=on_gpu)


def _gpt(size: str, num_tokens: int, device: torch.device, codebook_size: int = 16384) -> GPT:
    model = GPT(GPT.Config(size=size, codebook_size=codebook_size, num_tokens=num_tokens, num_classes=1000)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)  # a new one is zero, and zeros may be faster to multiply
    return model.requires_grad_(False).to(device)


def _work(model: GPT, batch: int, num_tokens: int) -> Work:
    """Every matrix read once a step in bf16 and multiplied with both halves' rows, the cache's written part read."""
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    rows = 2 * batch
    cached = 2 * rows * model.num_layers * model.width * num_tokens * (num_tokens + 1) / 2
    return Work(flops=2 * weights * rows * num_tokens + 2 * cached, bytes=2 * weights * num_tokens + 2 * cached)
