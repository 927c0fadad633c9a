"""Train, fine-tune or post-train a tokenizer: `python -m tokenizer.train --config configs/vq/VQ_SB256.yaml ...`."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from common import config
from common.flags import joined
from tokenizer.config import TrainConfig
from tokenizer.legacy import TRAIN_FLAGS
from tokenizer.robustok_yaml import from_robustok


def main() -> None:
    train(TRAIN_FLAGS)


def post_train() -> None:
    """As RobusTok's post-training spells it: the data are the pairs, the pair set is the folder of real images."""
    train({**TRAIN_FLAGS, "data-path": "data.pairs", "pair-set": "data.root"})


def train(flags: Mapping[str, config.Alias]) -> None:
    argv = joined(sys.argv[1:], "results/tokenizers/vq")
    settings = config.parse(TrainConfig, argv, aliases=flags, about=__doc__, translate=from_robustok)
    from tokenizer.trainer import estimate, run

    (estimate if settings.estimate else run)(settings)


if __name__ == "__main__":
    config.main(main)
