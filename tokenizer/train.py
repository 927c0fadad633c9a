"""Train, fine-tune or post-train a tokenizer: `python -m tokenizer.train --config configs/vq/VQ_SB256.yaml ...`."""

from __future__ import annotations

import sys

from common import config
from common.flags import joined
from tokenizer.config import TrainConfig
from tokenizer.legacy import TRAIN_FLAGS


def main() -> None:
    argv = joined(sys.argv[1:], "results/tokenizers/vq")
    settings = config.parse(TrainConfig, argv, aliases=TRAIN_FLAGS, about=__doc__)
    from tokenizer.trainer import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
