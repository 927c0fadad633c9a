"""Snapshots of behaviour: `python -m tests.snapshots --write` records them anew, after an intended change.

    dry_run/<config>.yaml    the resolved config that --dry-run prints, for every config under configs/
    losses.json              the figures of twenty steps of every trainer

pytest compares losses to a relative 1e-5, so that other processors pass; `--exact` wants them bit for bit, for changes
that move code and nothing else. Record and compare those on one machine.
"""

from __future__ import annotations

import argparse
import sys

from tests.snapshots import dry_run, losses


def main() -> int:
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m tests.snapshots", description=about, epilog=more, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="record all snapshots anew")
    what.add_argument("--exact", action="store_true", help="compare all snapshots bit for bit")
    if parser.parse_args().write:
        dry_run.write()
        losses.write()
        return 0
    found = dry_run.different()
    got, expected = losses.measure(), losses.stored()
    for run in losses.RUNS:
        found += [f"{run} {line}" for line in losses.different(got[run], expected[run], exact=True)]
    print("\n".join(found) or f"{len(dry_run.CONFIGS)} configs and {len(losses.RUNS)} trainings are as recorded")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
