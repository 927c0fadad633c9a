"""The ADM evaluator without TensorFlow: the same graph file, formulas and text, computed in torch.

    python -m evaluations.twin --gt-npz-path REF.npz --samples SAMPLES.npz

prints inception score, FID, sFID, precision and recall and writes them to `<samples>.txt` (the papers' five lines) and
`<samples>.json`. Precision and recall are the published kind (half-precision distances); beside them stand the exact
`precision_float64` and `recall_float64`.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import MISSING, opt


@dataclass
class TwinConfig:
    gt_npz_path: str = opt(MISSING, "reference .npz: arr_0, and mu, sigma, mu_s, sigma_s where it has them")
    samples: str = opt(MISSING, "sample .npz: arr_0 (N,H,W,3), values 0 to 255")
    inception_path: str | None = opt(None, "the Inception graph; null = the cache folder")
    batch_size: int | None = opt(None, "images at a time; null = 4 on a CPU, 64 on a GPU")
    device: str = opt("auto", "auto | cpu | cuda")


def main() -> None:
    settings = config.parse(TwinConfig, about=__doc__)
    from evaluations.twin_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
