"""Encode and decode images with a tokenizer and measure what is lost, at one or many token counts.

    bash scripts/reconstruction.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --num-tokens [8,16,32,64]

writes `<sample-dir>/results.json` (PSNR, SSIM, codebook use and what else was asked for, with the record of how),
`tokens_<k>.npz` (the reconstructions, in dataset order) and `previews/` (originals beside reconstructions).
With --qualitative every image is a preview and no distribution is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import opt, part
from evaluations.options import DecodingConfig


@dataclass
class ReconstructionConfig(DecodingConfig):
    sample_dir: str = opt("results/reconstructions/vq", "where results go")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    qualitative: bool = opt(False, "only write previews, of all images")
    num_previews: int = opt(16, "previews written beside the figures, evenly spread over the folder")
    clear_cache: bool = opt(False, "delete the .npz files at the end; figures and previews stay")
    global_seed: int = opt(0, "kept in the record; nothing here is random")
    precision: str = opt("none", "none (fp32) | bf16 autocast")


def _lpips(value: str) -> list[str]:
    return ["perceptual.name=lpips_vgg"] if value == "true" else []


_lpips.switch = True

FLAGS: dict[str, config.Alias] = {
    "quant-way": COMMON_FLAGS["quant-way"],
    "lpips": _lpips,
    "perceptual": "perceptual.name",
}


def main() -> None:
    settings = config.parse(ReconstructionConfig, aliases=FLAGS, about=__doc__)
    from evaluations.reconstruction_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
