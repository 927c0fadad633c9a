"""Download released checkpoints: `python -m autoregressive.download NAME... [--out checkpoints]`, `--list` shows them.

An interrupted download continues with the same command. Sizes and hashes are checked where configs/zoo.yaml or an
earlier download knows them; what arrives first is recorded in <out>/checksums.json."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import takewhile

from common import config
from common.config import opt

TABLE = "configs/zoo.yaml"


@dataclass
class DownloadConfig:
    """Everything `python -m autoregressive.download` reads."""

    names: list[str] = opt([], "checkpoints by name (the first words)")
    out: str = opt("checkpoints", "folder the files go to")
    show: bool = opt(False, "print the model zoo: parameters, configs and published numbers")
    source: str | None = opt(None, "address of the folder the files are in, instead of the table's")
    table: str = opt(TABLE, "the table of checkpoints")


def with_names(words: list[str]) -> list[str]:
    """The bare words that a command line starts with, as `names=[...]`; the rest as it is."""
    bare = [*takewhile(lambda word: not word.startswith("-") and "=" not in word, words)]
    return ([f"names=[{','.join(bare)}]"] if bare else []) + words[len(bare) :]


def main() -> None:
    settings = config.parse(DownloadConfig, with_names(sys.argv[1:]), aliases={"list": "show"}, about=__doc__)
    from autoregressive.zoo import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
