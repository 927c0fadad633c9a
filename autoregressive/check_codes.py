"""Decode some codes of a code store to images.

    bash scripts/check_code_c2i.sh --code-path STORE --vq-ckpt RUN --sample-dir OUT

writes `<class>_<image>.png`, the image's augmentations side by side, for images spread evenly over the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.paper_flags import COMMON_FLAGS
from common import config, dist
from common.codes import CodeStore
from common.config import MISSING, opt
from common.images import to_pixels, write_png
from common.options import WEIGHTS
from tokenizer.frozen_codes import check_codes_of


@dataclass
class CheckConfig:
    code_path: str = opt(MISSING, "code store")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run that made it")
    weights: str = opt("ema", "tokenizer weights", WEIGHTS)
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    sample_dir: str = opt("results/check_codes", "folder for the pictures")
    num_images: int = opt(16, "images shown")
    device: str = opt("auto", "auto | cpu | cuda")


@torch.inference_mode()
def run(config: CheckConfig) -> None:
    """Raises: UserError when another tokenizer made the store."""
    world = dist.init(config.device)
    store = CodeStore(config.code_path)
    model = tokenizers.load(config.vq_ckpt, config.weights, world.device, config.tok_config)
    check_codes_of(store.meta.get("codes_of"), model, f"code store {config.code_path!r}")
    out, count = Path(config.sample_dir), min(config.num_images, len(store))
    out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(np.linspace(0, len(store) - 1, count).round().astype(int).tolist(), unit="image"):
        pixels = to_pixels(model.decode(torch.from_numpy(store.augmentations(index)).to(world.device)))
        write_png(out / f"{store.classes[store.labels[index]]}_{index:06d}.png", np.concatenate(pixels, axis=1))
    print(f"{count} images: {out}")


def main() -> None:
    settings = config.parse(CheckConfig, aliases={**COMMON_FLAGS, "model-config": "tok_config"}, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
