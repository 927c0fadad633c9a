"""What simple methods reach on the same images: the yardsticks of the quickstart's PSNR.

    python -m evaluations.baselines --train-path DIR --data-path DIR --out FILE.json

`bilinear_8x8_psnr`: an 8x8 thumbnail, scaled up again. `kmeans_patch_vq_psnr`: every 8x8 patch replaced by the nearest
of 1,024 k-means centres fitted to training patches; at 64x64 pixels that is 64 codes of 10 bits, as many bits as 64
tokens of a 1,024-entry codebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import MISSING, opt


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


def main() -> None:
    settings = config.parse(BaselinesConfig, about=__doc__)
    from evaluations.baselines_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
