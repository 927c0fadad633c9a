"""Two ranks measure what one does: counts and sums are added over ranks, whose shares differ in size."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from evaluations import diagnose, pfid
from tests import toys

FD = "fd_efficientnet_lite2"


def measure(root: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {"vq_ckpt": str(root / "vq"), "data_path": str(root / "images"), "device": "cpu", "frechet": FD}
    diagnosis = diagnose.run(diagnose.DiagnoseConfig(**common, out=str(out / "d"), batch_size=2))
    perturbed = pfid.run(pfid.PfidConfig(
        **common, sample_dir=str(out / "p"), alphas=[0.5], deltas=[8], num_tokens=[4, 16], per_proc_batch_size=2
    ))  # fmt: skip
    return diagnosis, perturbed


def _rank(rank: int, root: Path, out: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = measure(root, out)
    torch.save(found, out / f"{rank}.pt")


def test_a_diagnosis_and_a_pfid_do_not_depend_on_the_ranks(tmp_path: Path, free_port: int) -> None:
    toys.write_images(tmp_path / "images", counts=(4, 2, 1))
    toys.save_tokenizer(tmp_path / "vq")
    diagnosis, perturbed = measure(tmp_path, tmp_path / "one")
    (tmp_path / "two").mkdir()
    torch.multiprocessing.spawn(_rank, (tmp_path, tmp_path / "two", free_port), nprocs=2)
    first, second = (torch.load(tmp_path / f"two/{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second  # every rank returns the record
    assert first[0]["images"] == diagnosis["images"] == 7
    assert first[0]["positions"] == diagnosis["positions"]
    for name, values in diagnosis["prefixes"].items():
        assert first[0]["prefixes"][name] == pytest.approx(values, rel=1e-4)
    for tokens, found in perturbed["tokens"].items():
        assert first[1]["tokens"][tokens]["mean"] == pytest.approx(found["mean"], rel=1e-4)
