"""Sample images: `python -m autoregressive.sample --gpt-ckpt RUN --vq-ckpt RUN --sample-dir DIR --cfg-scale 2.0 ...`.

Writes PNGs, labels.npy and settings.json into DIR, and DIR.npz. The same command again makes only what is missing."""

from __future__ import annotations

from autoregressive.config import SampleConfig
from autoregressive.legacy import SAMPLE_FLAGS
from common import config


def main() -> None:
    settings = config.parse(SampleConfig, aliases=SAMPLE_FLAGS, about=__doc__)
    from autoregressive.sampler import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
