"""Options that several evaluations share. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.config import MISSING, opt


@dataclass
class DecodingConfig:
    """A tokenizer, the images it encodes, how many tokens it decodes, and what measures their distance."""

    vq_ckpt: str = opt(MISSING, "tokenizer: a run, or one of its checkpoints")
    model_config: str | None = opt(None, "YAML that the checkpoint must agree with; null = trust the checkpoint")
    weights: str = opt("ema", "ema (falls back to model where a run kept no average) | model")
    data_path: str = opt(MISSING, "image folder; centre crops are taken")
    image_size: int | None = opt(None, "must be the tokenizer's size; null = that size")
    num_images: int | None = opt(None, "the first so many images of the folder; null = all")
    sample_dir: str = opt(MISSING, "where results go")
    num_tokens: list[int] = opt([], "decode the first k tokens, for each k in this list; [] = all tokens")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    gt_npz_path: str | None = opt(None, "reference .npz for FID and its companions; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    per_proc_batch_size: int = opt(32, "images at a time")
    num_workers: int = opt(0, "loader processes per rank")
    device: str = opt("auto", "auto | cpu | cuda")


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Rows of uint8 images (H,W,3) of one size -> one white-backed uint8 image. Rows may differ in length."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas
