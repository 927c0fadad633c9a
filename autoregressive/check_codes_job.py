"""What `autoregressive.check_codes` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.check_codes import CheckConfig
from common import dist
from common.checkpoint import fingerprint, resolve_folder
from common.codes import CodeStore
from common.errors import UserError
from common.images import to_pixels, write_png

__all__ = ["run"]


@torch.inference_mode()
def run(config: CheckConfig) -> None:
    """Raises: UserError when the store was made by another tokenizer."""
    world = dist.init(config.device)
    store = CodeStore(config.code_path)
    if store.meta["tokenizer"] not in (None, fingerprint(resolve_folder(config.vq_ckpt))):
        raise UserError(f"{config.code_path!r} are codes of another tokenizer than {config.vq_ckpt!r}; pass that one")
    model = tokenizers.load(config.vq_ckpt, config.weights, world.device, config.tok_config)
    out, count = Path(config.sample_dir), min(config.num_images, len(store))
    out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(np.linspace(0, len(store) - 1, count).round().astype(int).tolist(), unit="image"):
        pixels = to_pixels(model.decode(torch.from_numpy(store.augmentations(index)).to(world.device)))
        write_png(out / f"{store.classes[store.labels[index]]}_{index:06d}.png", np.concatenate(pixels, axis=1))
    print(f"{count} images: {out}")
