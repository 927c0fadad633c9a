"""Make pairs for post-training: `python -m autoregressive.make_pairs --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR
--out PAIRS --sigma 0.7 --cfg-scale 2.0`. The generator rewrites 1 - sigma of each image's codes in the presence of the
rest. An interrupted job continues with the same command, on any number of processes."""

from __future__ import annotations

from autoregressive.config import PairsConfig
from autoregressive.legacy import PAIRS_FLAGS
from common import config


def main() -> None:
    settings = config.parse(PairsConfig, aliases=PAIRS_FLAGS, about=__doc__)
    from autoregressive.make_pairs_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
