"""Train a class-conditional generator: `python -m autoregressive.train --config configs/gpt/GPT-B.yaml ...`."""

from __future__ import annotations

import sys

from autoregressive.config import TrainConfig
from autoregressive.legacy import TRAIN_FLAGS
from common import config
from common.flags import joined


def main() -> None:
    settings = config.parse(TrainConfig, joined(sys.argv[1:], "results/gpt"), aliases=TRAIN_FLAGS, about=__doc__)
    from autoregressive.trainer import estimate, run

    (estimate if settings.estimate else run)(settings)


if __name__ == "__main__":
    config.main(main)
