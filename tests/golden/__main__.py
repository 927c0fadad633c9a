"""Hold our implementation to the originals' numbers: `python -m tests.golden [DIR] [--family NAME] [--kind FOLDER]`.

Checks everything below DIR (`contracts/`, `wrappers/`, `tiny/`, `fullsize/`, `schedules/`; by default the numbers in
the repository, tests/golden/data) and prints one line per fixture, last `N passed, N failed`. The exit code is 1 if any
failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import torch

from tests.golden import runner


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.golden", description=__doc__.split("\n\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=runner.DATA, metavar="DIR")
    parser.add_argument("--family", choices=list(runner.FAMILIES), metavar="NAME", help=", ".join(runner.FAMILIES))
    parser.add_argument("--kind", choices=runner.KINDS, action="append", help="only this folder; may be repeated")
    given = parser.parse_args(argv)
    if not any((given.directory / name).exists() for kind in runner.KINDS for name in (kind, f"{kind}.json.xz")):
        parser.error(f"{str(given.directory)!r} holds none of the folders {', '.join(runner.KINDS)}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    counts: Counter[str] = Counter()
    for outcome in runner.run(given.directory, given.family, tuple(given.kind or runner.KINDS)):
        counts[outcome.status] += 1
        print(outcome.line(), flush=True)
    skipped = f", {counts['skip']} skipped" if counts["skip"] else ""
    print(f"{counts['pass']} passed, {counts['fail']} failed{skipped}")
    return 1 if counts["fail"] or not counts.total() else 0


if __name__ == "__main__":
    sys.exit(main())
