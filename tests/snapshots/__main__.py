"""Snapshots of behaviour: `python -m tests.snapshots --write` records them anew, after an intended change.

    dry_run/<config>.yaml    the resolved config that --dry-run prints, for every config under configs/
"""

from __future__ import annotations

import argparse

from tests.snapshots import dry_run


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.snapshots", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", required=True, help="record all snapshots anew")
    parser.parse_args()
    dry_run.write()


if __name__ == "__main__":
    main()
