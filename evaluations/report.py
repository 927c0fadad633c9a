"""Gather what the stages of a run measured into `metrics.json` and a self-contained `report.html`.

    python -m evaluations.report --results results/quickstart

reads, below --results: metrics.jsonl of tokenizer/, gpt/ and decoder/, reconstruction/results.json with its previews,
generation/results.json with its samples, baselines.json, and
stages.json: {"seconds": {stage: s}, "peak_rss_gb": x}.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import opt


@dataclass
class ReportConfig:
    results: str = opt("results/quickstart", "folder with the results of all stages; the report is written there")
    title: str = opt("Image tokens, few to many", "heading of the report")
    samples_per_class: int = opt(8, "samples shown of each class: the first ones, not chosen ones")


def main() -> None:
    settings = config.parse(ReportConfig, about=__doc__)
    from evaluations.report_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
