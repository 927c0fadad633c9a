"""The model-zoo table, from the records that the evaluation jobs wrote.

    bash scripts/model_card.sh --results results --out results/MODEL_ZOO.md

finds every `results.json` of a reconstruction or a generation below --results and writes a table of each, best first,
with what makes a number comparable beside it (images, reference, engine, flags) and the command that yields it.
Nothing is typed in by hand: a figure without a record is not in the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import opt


@dataclass
class ModelCardConfig:
    results: str = opt("results", "folder searched for result records, at any depth")
    out: str = opt("results/MODEL_ZOO.md", "the Markdown file to write")


def main() -> None:
    settings = config.parse(ModelCardConfig, about=__doc__)
    from evaluations.model_card_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
