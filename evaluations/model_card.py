"""The model-zoo table, from the records that the evaluation jobs wrote.

    bash scripts/model_card.sh --results results --out results/MODEL_ZOO.md

finds every `results.json` of a reconstruction or a generation below --results and writes a table of each, best first,
with what makes a number comparable beside it (images, reference, engine, flags) and the command that yields it.
Nothing is typed in by hand: a figure without a record is not in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import config, records
from common.config import opt
from common.errors import UserError


@dataclass
class ModelCardConfig:
    results: str = opt("results", "folder searched for result records, at any depth")
    out: str = opt("results/MODEL_ZOO.md", "the Markdown file to write")


def run(config: ModelCardConfig) -> str:
    """Write the tables; returns them.

    Raises: UserError when there is no record.
    """
    found = records.find(Path(config.results))
    if not found:
        raise UserError(
            f"no results.json with a protocol below {config.results!r}; scripts/reconstruction.sh and "
            "scripts/sample_c2i_search_cfg.sh write them (--results FOLDER)"
        )
    text = "# Model zoo\n\nWritten by `scripts/model_card.sh` from result records.\n\n" + records.render(found)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    Path(config.out).write_text(text, encoding="utf-8")
    print(f"{len(found)} records: {config.out}")
    return text


def main() -> None:
    settings = config.parse(ModelCardConfig, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
