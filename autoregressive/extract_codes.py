"""Tokenize an image folder into a code store: `python -m autoregressive.extract_codes --data-path DIR --vq-ckpt RUN
--code-path STORE [--ten-crop]`. An interrupted job continues with the same command, on any number of processes."""

from __future__ import annotations

from autoregressive.config import ExtractConfig
from autoregressive.legacy import EXTRACT_FLAGS
from common import config


def main() -> None:
    settings = config.parse(ExtractConfig, aliases=EXTRACT_FLAGS, about=__doc__)
    from autoregressive.extractor import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
