"""Every job reads the same images from every container as from the folder: on one and two ranks, and resumed.

`python -m tests.integration.test_container_jobs [CONTAINER ...]` prints the table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing
import yaml

import tokenizer.train
from autoregressive import extract_codes
from autoregressive.config import ExtractConfig
from common import config, data, dist
from evaluations import linear_probe, reference, val_loss
from tests import toys
from tests.containers import CONTAINERS, SYNSETS, write_imagenet
from tokenizer.config import TrainConfig

SETTINGS = {
    "model": toys.TOKENIZER, "losses": {"perceptual": None}, "adversary": None, "ema_decay": 0.0,
    "run": {"steps": 50, "checkpoint_every": 35, "milestone_every": 0, "precision": "none", "device": "cpu"},
    "data": {"batch_size": 2, "crop": "random", "flip": True},
}  # fmt: skip


def train_tokenizer(root: Path, path: str, out: Path, _ranks: int) -> None:
    words = ["--config", f"{root}/train.yaml", f"data.root={path}", f"run.out={out}"]
    tokenizer.train.run(config.parse(TrainConfig, words))


def extract(root: Path, path: str, out: Path, _ranks: int) -> None:
    words = {"vq-ckpt": root / "vq", "data-path": path, "code-path": out, "device": "cpu", "batch-size": 2, "chunk": 16}
    extract_codes.run(config.parse(ExtractConfig, flags(words), aliases=extract_codes.EXTRACT_FLAGS))


def validation_loss(root: Path, path: str, out: Path, _ranks: int) -> None:
    words = {
        "gpt-ckpt": root / "gpt", "vq-ckpt": root / "vq", "data-path": path, "device": "cpu", "out": f"{out}.json",
        "per-proc-batch-size": 1,
    }  # fmt: skip
    val_loss.run(config.parse(val_loss.ValLossConfig, flags(words), aliases=val_loss.FLAGS))


def probe(root: Path, path: str, out: Path, ranks: int) -> None:
    words = {
        "vq-ckpt": root / "vq", "data-path": path, "val-path": path, "out": out, "batch-size": 2 // ranks, "epochs": 2,
        "warmup-epochs": 1, "lr": 1, "device": "cpu", "ckpt-epoch": 1,
    }  # fmt: skip
    linear_probe.run(config.parse(linear_probe.ProbeConfig, flags(words), aliases=linear_probe.FLAGS))


def reference_images(root: Path, path: str, out: Path, _ranks: int) -> None:
    words = {"data-path": path, "sample-dir": out, "image-size": 32, "per-proc-batch-size": 1}
    reference.run(config.parse(reference.ReferenceConfig, flags(words)))


def flags(words: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


JOBS: dict[str, Callable[[Path, str, Path, int], None]] = {
    "train tokenizer": train_tokenizer, "extract codes": extract, "validation loss": validation_loss, "probe": probe,
    "reference images": reference_images,
}  # fmt: skip
CONTINUES = ("train tokenizer", "extract codes", "probe")
STOPS = {"probe": 70, "train tokenizer": 75}  # images; after a checkpoint in the middle of an epoch


def _no_step(*_: Any) -> dict[str, torch.Tensor]:
    """The steps of training a tokenizer, which would take most of the time, compute nothing."""
    return {"train/loss": torch.zeros(()), "not_finite": torch.zeros(())}


def watched(job: str, root: Path, path: str, out: Path, ranks: int = 1, stop: int | None = None) -> list[str]:
    """A digest of each image (pixels, label) that a job's loader yields; `stop` interrupts it after so many."""
    seen: list[str] = []
    plain = data.iterate

    def iterate(loader: Any) -> Iterator[dict[str, Any]]:
        for batch in plain(loader):
            labels = batch.get("label", torch.zeros(len(batch["pixels"]), dtype=torch.long)).tolist()
            for pixels, label in zip(batch["pixels"], labels, strict=True):
                seen.append(hashlib.sha256(pixels.numpy().tobytes() + bytes([label])).hexdigest())
            if stop is not None and len(seen) > stop:
                raise KeyboardInterrupt
            yield batch

    step = mock.patch.object(tokenizer.train.TokenizerTrainee, "step", _no_step)
    with step, mock.patch.object(data, "iterate", iterate), contextlib.suppress(KeyboardInterrupt):
        JOBS[job](root, path, out, ranks)
    return seen


def _rank(rank: int, root: Path, paths: dict[str, str], port: int) -> None:
    """All jobs and containers in one process group, which the jobs would otherwise close."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = {}
    with mock.patch.object(dist, "close", lambda: None), open(os.devnull, "w") as no, contextlib.redirect_stdout(no):
        for name, path in paths.items():
            for job in JOBS:
                found[f"{name}: {job}"] = watched(job, root, path, root / "two" / name / job.replace(" ", "_"), 2)
    (root / f"rank{rank}.json").write_text(json.dumps(found))
    dist.close()


def make(root: Path, names: Iterable[str] = CONTAINERS) -> dict[str, str]:
    """Images, models, and containers: name -> --data-path."""
    write_imagenet(root / "images", each=17)
    toys.save_tokenizer(root / "vq")
    with mock.patch.object(toys, "COLOURS", dict.fromkeys(SYNSETS)):
        toys.save_generator(root / "gpt")
    (root / "train.yaml").write_text(yaml.safe_dump(SETTINGS))
    paths = {"folder": str(root / "images/train")}
    for number, name in enumerate(names):
        out = root / f"container{number}"
        out.mkdir()
        paths[name] = CONTAINERS[name](root / "images", out)
    return paths


@functools.cache
def two_ranks(root: Path, paths: tuple[tuple[str, str], ...]) -> list[dict[str, list[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (root, dict(paths), port), nprocs=2)
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


def whole(root: Path, paths: dict[str, str], job: str) -> list[str]:
    return watched(job, root, paths["folder"], root / "folder" / job.replace(" ", "_"))


def check(root: Path, paths: dict[str, str], name: str, job: str, expected: list[str]) -> dict[str, bool]:
    """What of a container agrees with the folder's images, `expected`: on one rank, on two, resumed."""
    out = root / "one" / name / job.replace(" ", "_")
    before = watched(job, root, paths[name], out, stop=STOPS.get(job, 43))
    rest = watched(job, root, paths[name], out)
    found = {
        "1 rank": before == expected[: len(before)] and len(before) + len(rest) >= len(expected),
        "resumed": rest == expected[-len(rest) :] and len(rest) > 9,
    }
    if job in CONTINUES:
        found["resumed"] &= len(rest) < len(expected)
    shares = [ranks[f"{name}: {job}"] for ranks in two_ranks(root, tuple(paths.items()))]
    folder = [ranks[f"folder: {job}"] for ranks in two_ranks(root, tuple(paths.items()))]
    found["2 ranks"] = shares == folder and sorted(shares[0] + shares[1]) == sorted(expected)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("container_jobs")
    return root, make(root)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_every_container_gives_the_folder_s_batches(made: tuple[Path, dict[str, str]], job: str) -> None:
    root, paths = made
    expected = whole(root, paths, job)
    assert len(expected) >= 50
    for name in CONTAINERS:
        assert all(check(root, paths, name, job, expected).values()), name


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
        root = Path(folder)
        paths = make(root, sys.argv[1:] or CONTAINERS)
        lines = ["| container | " + " | ".join(JOBS) + " |", "|-|" + "-|" * len(JOBS)]
        with contextlib.redirect_stdout(quiet):
            expected = {job: whole(root, paths, job) for job in JOBS}
            hashes = [hashlib.sha256("".join(expected[job]).encode()).hexdigest()[:8] for job in JOBS]
            lines.append(f"| folder | {' | '.join(hashes)} |")
            for name in [*paths][1:]:
                row = [check(root, paths, name, job, expected[job]) for job in JOBS]
                shown = ["equal" if all(each.values()) else f"DIFFERS {each}" for each in row]
                lines.append(f"| {name} | {' | '.join(shown)} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
