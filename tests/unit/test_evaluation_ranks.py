"""Two ranks measure what one does: counts and sums are added over ranks, whose shares differ in size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from evaluations import diagnose, pfid
from tests import toys


def measure(job: str, root: Path, out: Path) -> dict[str, Any]:
    common = {"vq_ckpt": str(root / "vq"), "data_path": str(root / "images"), "device": "cpu",
              "frechet": "fd_efficientnet_lite2"}  # fmt: skip
    if job == "diagnose":
        return diagnose.run(diagnose.DiagnoseConfig(**common, out=str(out), batch_size=2))
    grid = {"alphas": [0.5], "deltas": [8], "num_tokens": [4, 16], "per_proc_batch_size": 2}
    return pfid.run(pfid.PfidConfig(**common, **grid, sample_dir=str(out)))


def _rank(rank: int, job: str, root: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    (root / f"{rank}.json").write_text(json.dumps(measure(job, root, root / "two")))


@pytest.mark.parametrize("job", ["diagnose", "pfid"])
def test_a_job_does_not_depend_on_the_ranks(job: str, tmp_path: Path, free_port: int) -> None:
    toys.write_images(tmp_path / "images", counts=(4, 2, 1))
    toys.save_tokenizer(tmp_path / "vq")
    one = measure(job, tmp_path, tmp_path / "one")
    torch.multiprocessing.spawn(_rank, (job, tmp_path, free_port), nprocs=2)
    two, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert two == other  # every rank returns the record
    if job == "diagnose":
        assert two["images"] == one["images"] == 7 and two["positions"] == one["positions"]
        for name, values in one["prefixes"].items():
            assert two["prefixes"][name] == pytest.approx(values, rel=1e-4)
    else:
        for tokens, found in one["tokens"].items():
            assert two["tokens"][tokens]["mean"] == pytest.approx(found["mean"], rel=1e-4)
