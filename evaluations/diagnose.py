"""What every token of a tokenizer is worth: code use, entropy and marginal gain, position by position.

    bash scripts/diagnose_tokenizer.sh --vq-ckpt RUN --data-path DIR --out OUT

writes `<out>/diagnosis.json`, `<out>/positions.md` (a table) and `<out>/positions.png`. A tail of low entropy whose
tokens gain nothing is what nested dropout alone tends to leave, and what ReTok and NesTok attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common import config
from common.config import MISSING, opt, part


@dataclass
class DiagnoseConfig:
    vq_ckpt: str = opt(MISSING, "tokenizer: a run, one of its checkpoints, or a released file")
    weights: str = opt("ema", "ema (falls back to model where a run kept no average) | model")
    data_path: str = opt(MISSING, "held-out image folder; centre crops are taken")
    num_images: int | None = opt(None, "so many images, evenly spread over the folder; null = all")
    out: str = opt(MISSING, "folder for the results")
    every: int | None = opt(None, "gains are measured over so many tokens at a time; null = a 64th of all")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    batch_size: int = opt(32, "images at a time, per process")
    precision: str = opt("none", "none (fp32) | bf16 autocast")
    device: str = opt("auto", "auto | cpu | cuda")


FLAGS: dict[str, config.Alias] = {"perceptual": "perceptual.name"}


def main() -> None:
    settings = config.parse(DiagnoseConfig, aliases=FLAGS, about=__doc__)
    from evaluations.diagnose_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
