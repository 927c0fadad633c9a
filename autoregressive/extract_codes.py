"""Tokenize an image folder into a code store: `python -m autoregressive.extract_codes --data-path DIR --vq-ckpt RUN
--code-path STORE [--ten-crop]`. An interrupted job continues with the same command, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.config import ExtractConfig
from autoregressive.paper_flags import EXTRACT_FLAGS
from common import checkpoint, config, dist
from common.codes import ChunkedWriter, hash_names, import_npy
from common.containers import open_images
from common.data import ImageFolder, batches
from common.errors import UserError
from common.images import center_crop
from tokenizer.frozen_codes import codes_fingerprint
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer


class Crops(Dataset):
    """All augmentations of each image: `pixels` uint8 (A, H, W, 3).

    Ten-crop, for each range: top left, top right, bottom left, bottom right, centre, then their mirror images.
    """

    def __init__(self, folder: ImageFolder, ten_crop: bool, ranges: list[float]) -> None:
        self.folder, self.ten_crop, self.ranges = folder, ten_crop, ranges

    @property
    def count(self) -> int:
        return 10 * len(self.ranges) if self.ten_crop else 2

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, side = self.folder.read(index), self.folder.image_size
        if not self.ten_crop:
            centre = np.asarray(center_crop(image, side))
            return {"pixels": np.stack((centre, centre[:, ::-1]))}
        crops: list[np.ndarray] = []
        for reach in self.ranges:
            whole = np.asarray(center_crop(image, int(side * reach)))
            far = len(whole) - side
            middle = round(far / 2)
            corners = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
            five = [whole[top : top + side, left : left + side] for top, left in corners]
            crops += five + [crop[:, ::-1] for crop in five]
        return {"pixels": np.stack(crops)}


def run(config: ExtractConfig) -> Path:
    """The job behind `python -m autoregressive.extract_codes`: returns the store's path."""
    if config.from_npy:
        return _import(config)
    if not config.data_path or not config.vq_ckpt:
        raise UserError("give --data-path (images) and --vq-ckpt (tokenizer), or import codes with --from-npy")
    if config.ten_crop and min(config.crop_ranges, default=0.0) < 1.0:
        raise UserError(f"--crop-range got {config.crop_ranges}; expected numbers of at least 1, such as 1.1")
    world = dist.init(config.device)
    model = tokenizers.load(config.vq_ckpt, config.weights, world.device, config.tok_config, config.image_size)
    folder = open_images(config.data_path, model.image_size)
    crops = Crops(folder, config.ten_crop, config.crop_ranges)
    fast = Inference(model, config.precision)
    writer = ChunkedWriter(config.code_path, _meta(config, model, folder, crops), config.chunk)
    if writer.is_finished():
        print(f"{writer.path}: already extracted; nothing to do")
        return writer.path
    todo = dist.claim(writer, world)
    total = sum(len(writer.images(number)) for number in todo)
    with tqdm(total=total, desc="extract codes", unit="image", disable=not world.is_main, dynamic_ncols=True) as bar:
        for number in todo:
            writer.write(number, _encode(fast, crops, writer.images(number), config, world.device, bar))
    dist.barrier()
    if world.is_main:
        writer.finish(folder.labels)
        print(f"{writer.path}: {len(folder)} images x {crops.count} augmentations x {model.num_tokens} codes")
    dist.barrier()
    dist.close()
    return writer.path


@torch.inference_mode()
def _encode(
    model: Inference, crops: Crops, images: range, config: ExtractConfig, device: torch.device, bar: tqdm
) -> np.ndarray:
    """Codes (images, augmentations, N): augmentations of one image stay together on axis 1."""
    rows = []
    for batch in batches(crops, images, max(1, config.batch_size // crops.count), config.workers):
        pixels = batch["pixels"]
        flat = [model.encode(part.to(device)) for part in pixels.flatten(0, 1).split(config.batch_size)]
        rows.append(torch.cat(flat).unflatten(0, pixels.shape[:2]).cpu().numpy())
        bar.update(len(pixels))
    return np.concatenate(rows)


def _meta(config: ExtractConfig, model: Tokenizer, folder: ImageFolder, crops: Crops) -> dict[str, Any]:
    return {
        "num_images": len(folder), "num_augmentations": crops.count, "num_tokens": model.num_tokens,
        "codebook_size": model.codebook_size, "classes": folder.classes,
        "tokenizer": checkpoint.fingerprint(checkpoint.resolve_folder(config.vq_ckpt)), "weights": config.weights,
        "codes_of": codes_fingerprint(model), "precision": config.precision, "image_size": model.image_size,
        "crops": [f"ten_crop {reach}" for reach in config.crop_ranges] if config.ten_crop else ["centre, mirrored"],
        "image_order": hash_names(folder.names()),
    }


def _import(config: ExtractConfig) -> Path:
    if not config.codebook_size:
        raise UserError("--from-npy needs --codebook-size: the files do not say how many different codes there are")
    root = Path(config.from_npy)
    found = {kind: sorted(root.glob(f"*_{kind}")) for kind in ("codes", "labels")}
    if any(len(folders) != 1 for folders in found.values()):
        raise UserError(f"--from-npy got {str(root)!r}; expected a folder with one *_codes and one *_labels folder")
    path = import_npy(found["codes"][0], found["labels"][0], config.code_path, config.codebook_size)
    print(f"{path}: imported from {root}")
    return path


def main() -> None:
    settings = config.parse(ExtractConfig, aliases=EXTRACT_FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
