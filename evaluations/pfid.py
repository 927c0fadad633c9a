"""How well a decoder bears wrong codes: the distance of reconstructions from perturbed codes to the originals (pFID).

    bash scripts/eval_pfid.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --gt-npz-path VAL.npz

With probability alpha each code of each image is redrawn among the delta codes nearest to it, its own included; FID is
measured for every (alpha, delta), and pFID is the mean. `--frechet fd_efficientnet_lite2` measures the same on embedded
features and calls it pfd_efficientnet_lite2. The settings behind published pFIDs are not known: the grid here is ours,
so compare only figures of one grid. A continuous tokenizer has no codes to redraw: its vectors get Gaussian noise, and
the figure is called pfid_c. Writes `<sample-dir>/results.json` with every cell, and the unperturbed rFID.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import opt
from evaluations.options import DecodingConfig


@dataclass
class PfidConfig(DecodingConfig):
    sample_dir: str = opt("results/pfid", "where results go")
    alphas: list[float] = opt([0.5, 0.7, 0.9], "probabilities that a code is redrawn")
    deltas: list[float] = opt([0.02, 0.05], "pools it is redrawn from: a number of codes, or below 1 a share of them")
    neighbours: str = opt("code", "nearest to the chosen code (the paper's text) | to the latent (RobusTok's training)")
    rhos: list[float] = opt(
        [0.1, 0.2, 0.4], "continuous tokenizers: noise instead, as a share of each channel's standard deviation"
    )
    seed: int = opt(0, "image i draws from the seed and i alone")


FLAGS: dict[str, config.Alias] = {"quant-way": COMMON_FLAGS["quant-way"], "global-seed": "seed"}


def main() -> None:
    settings = config.parse(PfidConfig, aliases=FLAGS, about=__doc__)
    from evaluations.pfid_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
