"""How well a decoder bears wrong codes: the distance of reconstructions from perturbed codes to the originals (pFID).

    bash scripts/eval_pfid.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --gt-npz-path VAL.npz

With probability alpha each code of each image is redrawn among the delta codes nearest to it, its own included; FID is
measured for every (alpha, delta), and pFID is the mean. `--frechet fd_efficientnet_lite2` measures the same on embedded
features and calls it pfd_efficientnet_lite2. The settings behind published pFIDs are not known: the grid here is ours,
so compare only figures of one grid. Writes `<sample-dir>/results.json` with every cell, and the unperturbed rFID.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import MISSING, opt


@dataclass
class PfidConfig:
    vq_ckpt: str = opt(MISSING, "tokenizer: a run, or one of its checkpoints")
    model_config: str | None = opt(None, "YAML that the checkpoint must agree with; null = trust the checkpoint")
    weights: str = opt("ema", "ema (falls back to model where a run kept no average) | model")
    data_path: str = opt(MISSING, "image folder; centre crops are taken")
    image_size: int | None = opt(None, "must be the tokenizer's size; null = that size")
    num_images: int | None = opt(None, "the first so many images of the folder; null = all")
    sample_dir: str = opt("results/pfid", "where results go")
    num_tokens: list[int] = opt([], "decode the first k tokens, for each k in this list; [] = all tokens")
    alphas: list[float] = opt([0.5, 0.7, 0.9], "probabilities that a code is redrawn")
    deltas: list[float] = opt([0.02, 0.05], "pools it is redrawn from: a number of codes, or below 1 a share of them")
    neighbours: str = opt("code", "nearest to the chosen code (the paper's text) | to the latent (RobusTok's training)")
    seed: int = opt(0, "image i draws from the seed and i alone")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    gt_npz_path: str | None = opt(None, "reference .npz for pFID itself; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    per_proc_batch_size: int = opt(32, "images at a time")
    num_workers: int = opt(0, "loader processes per rank")
    device: str = opt("auto", "auto | cpu | cuda")


FLAGS: dict[str, config.Alias] = {"quant-way": COMMON_FLAGS["quant-way"], "global-seed": "seed"}


def main() -> None:
    settings = config.parse(PfidConfig, aliases=FLAGS, about=__doc__)
    from evaluations.pfid_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
