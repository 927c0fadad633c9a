"""The Slurm script, with stand-ins for srun and scontrol: ranks, addresses, and who is queued again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
# Four tasks on two nodes, one after the other; like srun, exits with the highest code.
shift
highest=0
for task in 0 1 2 3; do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) SLURM_NTASKS=4 "$@" || { code=$?; [ $code -gt $highest ] && highest=$code; }
done
exit $highest
"""  # noqa: E501
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >> "$CALLS"; fi
"""
LAUNCHER = """#!/usr/bin/env bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $GPUS $NNODES $*"
exit "$1"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("launcher.sh", LAUNCHER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(cluster: Path, code: int) -> tuple[subprocess.CompletedProcess, list[str]]:
    slurm = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_SUBMIT_DIR": str(cluster)}
    environment = os.environ | slurm | {"PATH": f"{cluster}:{os.environ['PATH']}", "CALLS": str(cluster / "calls")}
    command = ["bash", ROOT / "scripts/slurm/train.sbatch", "launcher.sh", str(code), "a b"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    calls = (cluster / "calls").read_text().splitlines() if (cluster / "calls").exists() else []
    return done, calls


def test_every_task_knows_its_rank_and_where_to_meet(cluster: Path) -> None:
    done, calls = submit(cluster, 0)
    assert done.returncode == 0 and calls == [], done.stderr
    ranks = [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert done.stdout.splitlines() == [f"{rank} {local} 4 node7 21234 1 1 0 a b" for rank, local in ranks]


def test_a_saved_job_is_queued_again(cluster: Path) -> None:
    done, calls = submit(cluster, 75)
    assert done.returncode == 0 and calls == ["requeue 41234"]


def test_a_failed_job_is_not(cluster: Path) -> None:
    done, calls = submit(cluster, 2)
    assert done.returncode == 2 and calls == []
