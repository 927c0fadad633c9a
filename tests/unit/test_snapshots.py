"""The recorded snapshots still hold. After an intended change: `python -m tests.snapshots --write`."""

from __future__ import annotations

import pytest

from tests.snapshots import dry_run


def test_every_shipped_config_has_a_snapshot_and_no_other() -> None:
    stored = sorted(path.relative_to(dry_run.STORED).as_posix() for path in dry_run.STORED.rglob("*.yaml"))
    assert stored == dry_run.CONFIGS


@pytest.mark.parametrize("name", dry_run.CONFIGS)
def test_dry_run_prints_the_recorded_config(name: str) -> None:
    assert dry_run.resolved(name) == (dry_run.STORED / name).read_text()
