"""Extracting codes with the tokenizer S-S at 256 pixels, beside eager float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import compare, median_seconds
from benchmarks.training import STAND_INS
from common import config
from common.log import peak_memory_gb
from tokenizer.config import TrainConfig
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer

__all__ = ["extraction", "extraction_growth"]

CONFIG = Path(__file__).parents[1] / "configs" / "vq" / "VQ_SS256.yaml"
BATCH = {"cpu": 4, "cuda": 64}


def extraction(device: torch.device) -> dict[str, Any]:
    """Images a second from uint8 pixels to codes."""
    count = BATCH[device.type]
    plain, ours = Inference(_tokenizer(device)).encode, Inference(_tokenizer(device), "bf16").encode
    pixels = _pixels(count, device)
    return {
        f"S-S, {count} images": compare(
            lambda: plain(pixels), lambda: ours(pixels), count, device
        )
    }


def extraction_growth(device: torch.device, counts: tuple[int, ...] = (4, 8, 16, 32)) -> dict[str, Any]:
    """Seconds for 4 to 32 images in batches of 4, and this process's peak memory after each."""
    encode = Inference(_tokenizer(device), "bf16").encode
    pixels = _pixels(4, device)
    rows = {}
    for count in counts:
        seconds = median_seconds(lambda: [encode(pixels) for _ in range(count // 4)], device, repeats=3)  # noqa: B023
        rows[count] = {"seconds": seconds, "seconds_per_image": seconds / count, "peak_memory_gb": peak_memory_gb()}
    return rows


def _tokenizer(device: torch.device) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(_settings().model).eval().requires_grad_(False).to(device)


def _pixels(count: int, device: torch.device) -> torch.Tensor:
    side = _settings().model.image_size
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, device=device)


def _settings() -> TrainConfig:
    return config.parse(TrainConfig, ["--config", str(CONFIG), *STAND_INS])
