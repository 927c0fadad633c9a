"""Train the tokenizer variants with several seeds, measure them and a generator on each, and compare.

    bash scripts/evidence.sh --workers 2

writes `<out>/table.md`, `<out>/evidence.json` and the plots. Without options it is the small scale, on OpenMoji's
drawings. `--configs` names a folder with a config per variant and `gpt.yaml` for the generators, `--train-path` and
`--val-path` the images: that is all that another scale takes.

Every stage (a tokenizer, its measurements, its codes, a generator, its samples) is a job that is skipped when it is
finished, so the same command continues. It may also be started several times at once, with `--seeds` that differ or
not: who works on a stage holds it. The comparison is written by whoever finds everything finished.
"""

from __future__ import annotations

from common import config
from studies import study
from studies.variants import EvidenceConfig, stages


def run(options: EvidenceConfig) -> None:
    """All stages, then the comparison."""
    from studies.variants_table import compare  # torch and matplotlib: seconds of --help otherwise

    study.run(stages(options), options.out, options.workers, options.gpus)
    compare(options)


def main() -> None:
    run(config.parse(EvidenceConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
