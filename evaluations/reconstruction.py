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
from common.config import MISSING, opt, part


@dataclass
class ReconstructionConfig:
    vq_ckpt: str = opt(MISSING, "tokenizer: a run, or one of its checkpoints")
    model_config: str | None = opt(None, "YAML that the checkpoint must agree with; null = trust the checkpoint")
    weights: str = opt("ema", "ema (falls back to model where a run kept no average) | model")
    data_path: str = opt(MISSING, "image folder; centre crops are taken")
    image_size: int | None = opt(None, "must be the tokenizer's size; null = that size")
    num_images: int | None = opt(None, "the first so many images of the folder; null = all")
    sample_dir: str = opt("results/reconstructions/vq", "where results go")
    num_tokens: list[int] = opt([], "decode the first k tokens, for each k in this list; [] = all tokens")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    gt_npz_path: str | None = opt(None, "reference .npz for rFID and its companions; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    qualitative: bool = opt(False, "only write previews, of all images")
    num_previews: int = opt(16, "previews written beside the figures, evenly spread over the folder")
    clear_cache: bool = opt(False, "delete the .npz files at the end; figures and previews stay")
    per_proc_batch_size: int = opt(32, "images at a time")
    num_workers: int = opt(0, "loader processes per rank")
    global_seed: int = opt(0, "kept in the record; nothing here is random")
    precision: str = opt("none", "none (fp32) | bf16 autocast")
    device: str = opt("auto", "auto | cpu | cuda")


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
