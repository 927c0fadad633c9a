"""PSNR of two simple methods on the same images.

    python -m studies.baselines --train-path DIR --data-path DIR --out FILE.json

`bilinear_8x8_psnr`: an 8x8 thumbnail, enlarged. `kmeans_patch_vq_psnr`: every 8x8 patch replaced by the nearest of
1,024 k-means centres of training patches. At 64x64 pixels these are 64 codes of 10 bits, as many bits as 64 tokens of a
codebook of 1,024.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common import config
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder
from common.errors import UserError
from common.images import from_pixels, to_pixels
from common.numerics import torch_generator
from evaluations import record
from evaluations.metrics.psnr import psnr


@dataclass
class BaselinesConfig:
    train_path: str = opt(MISSING, "image folder the k-means centres are fitted to")
    data_path: str = opt(MISSING, "image folder both baselines are measured on")
    out: str = opt(MISSING, "result file (.json)")
    image_size: int = opt(64, "side of the centre crops, pixels")
    num_train_images: int = opt(1300, "training images, evenly spread over the folder")
    num_codes: int = opt(1024, "k-means centres")
    patch: int = opt(8, "side of the patches, pixels")
    iterations: int = opt(15, "k-means iterations")
    seed: int = opt(0, "which patches the centres start from")


THUMBNAIL = 8


def run(config: BaselinesConfig) -> dict[str, Any]:
    """Measure both baselines and write them to `config.out`; an earlier result for the same question is reused."""
    train = open_images(config.train_path, config.image_size)
    held_out = open_images(config.data_path, config.image_size)
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key != "out"}
    files = train.files(len(train)) + held_out.files(len(held_out))
    question = {"job": "baselines", **asked, "files": record.files_key(files)}
    earlier = record.read_current(config.out, question)
    if earlier is not None:
        print(f"{config.out}: measured before")
        return earlier
    images = from_pixels(read_images(held_out, len(held_out)))
    patches = _patches(from_pixels(read_images(train, config.num_train_images)), config.patch)
    centres = kmeans(patches, config.num_codes, config.iterations, config.seed)
    mine = _patches(images, config.patch)
    quantized = _images(centres[nearest(mine, centres)], len(images), config.image_size, config.patch)
    results = {
        "bilinear_8x8_psnr": _mean_psnr(bilinear_thumbnail(images), images),
        "kmeans_patch_vq_psnr": _mean_psnr(quantized, images),
        "images": len(images),
    }
    results = record.write(config.out, question, results)
    print(f"bilinear 8x8: {results['bilinear_8x8_psnr']:.2f} dB, k-means: {results['kmeans_patch_vq_psnr']:.2f} dB")
    return results


def bilinear_thumbnail(images: Tensor) -> Tensor:
    """Images (B,3,H,W) shrunk to 8x8 (antialiased) and scaled back, both bilinear."""
    small = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bilinear")


def kmeans(points: Tensor, num_codes: int, iterations: int, seed: int) -> Tensor:
    """Lloyd's algorithm from randomly chosen points; a centre that loses all its points restarts at a random one.

    Args:
        points: (N,D). Returns: centres (num_codes,D). Raises: UserError for fewer points than centres.
    """
    if len(points) < num_codes:
        raise UserError(f"got {len(points)} patches for {num_codes} centres; lower --num-codes or add images")
    random = torch_generator(seed, "k-means")
    centres = points[torch.randperm(len(points), generator=random)[:num_codes]].clone()
    for _ in tqdm(range(iterations), desc="k-means", unit="iteration", dynamic_ncols=True):
        codes = nearest(points, centres)
        counts = torch.bincount(codes, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, codes, points)
        centres = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        centres[empty] = points[torch.randint(len(points), (len(empty),), generator=random)]
    return centres


def nearest(points: Tensor, centres: Tensor, block: int = 8192) -> Tensor:
    """Index (N,) of the nearest centre (K,D) of every point (N,D)."""
    half_norms = centres.square().sum(dim=1) / 2
    return torch.cat([(half_norms - part @ centres.T).argmin(dim=1) for part in points.split(block)])


def read_images(dataset: ImageFolder, count: int) -> Tensor:
    """`count` images evenly spread over the dataset (all, if it has no more), uint8 (N,H,W,3)."""
    count = min(count, len(dataset))
    chosen = [round((i + 0.5) * len(dataset) / count - 0.5) for i in range(count)]
    return torch.from_numpy(np.stack([dataset[index]["pixels"] for index in chosen]))


def _patches(images: Tensor, patch: int) -> Tensor:
    """(B,3,H,W) -> (B * patches, 3 * patch * patch), row by row."""
    if images.shape[-1] % patch:
        raise UserError(f"--patch {patch} does not divide --image-size {images.shape[-1]}")
    return F.unfold(images, patch, stride=patch).transpose(1, 2).flatten(0, 1)


def _images(patches: Tensor, count: int, size: int, patch: int) -> Tensor:
    columns = patches.view(count, -1, patches.shape[1]).transpose(1, 2)
    return F.fold(columns, (size, size), patch, stride=patch)


def _mean_psnr(images: Tensor, references: Tensor) -> float:
    rounded = from_pixels(torch.from_numpy(to_pixels(images)))
    return psnr(rounded, references, data_range=2.0).mean().item()


def main() -> None:
    settings = config.parse(BaselinesConfig, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
