"""The lines of the check that start trainings of their own: the matrix of parallelism and precision, a killed rank."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.check_gpu.cases import ROOT
from benchmarks.check_gpu.lines import Figures, SkipError, check

WORDS = [
    "--config", str(ROOT / "configs/toy/robustok.yaml"), "data.batch_size=4", "data.workers=0", "adversary.start=1",
    "adversary.adaptive=true", "adversary.lecam={}", "regularizers.perturbation.delta=4",
    "model.quantizer={name: vq, codebook_size: 64, codebook_dim: 16, entropy_weight: 0.1}", "run.validate_every=2",
    "run.checkpoint_every=2", "run.background_save=true", "log.every=1", "run.compile=false",
]  # fmt: skip
FROZEN = ["freeze=[encoder,quant_conv,quantizer]", "regularizers.contrastive=null"]


def _start(folder: str, device: torch.device, ranks: int, *words: str) -> list[subprocess.Popen[bytes]]:
    """One process per rank of a toy training on noise."""
    images = Path(folder) / "images"
    images.mkdir(exist_ok=True)
    for number in range(16):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.png")
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    given = [f"data.root={images}", f"val_root={images}", f"run.device={device.type}", *WORDS, *words]
    started = []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables: Any = os.environ | {key: str(value) for key, value in place.items()} | {"OMP_NUM_THREADS": "1"}
        with (Path(folder) / f"rank{rank}.txt").open("ab") as log:
            command = [sys.executable, "-m", "tokenizer.train", *given]
            started.append(subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log))
    return started


def matrix(device: torch.device) -> Figures:
    """2: every parallelism and precision: steps, validation, saving, going on with one rank, frozen codes.

    A CPU does one cell under gloo; tests/integration/test_precision.py does all.
    """
    ranks = min(2, torch.cuda.device_count()) if device.type == "cuda" else 2
    cells = [(way, precision, "all") for way in ("none", "ddp", "fsdp") for precision in ("none", "bf16")]
    cells.append(("fsdp", "bf16", "decoder"))
    if device.type == "cpu":
        cells = [("fsdp", "bf16", "decoder")]
    seconds = {}
    for way, precision, part in cells:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            words = [f"run.out={folder}/run", "run.steps=4", f"run.parallel={way}", f"run.precision={precision}"]
            words += FROZEN if part == "decoder" else []
            for count, more in ((1 if way == "none" else ranks, ["run.stop_at=2"]), (1, [])):
                codes = [each.wait(300) for each in _start(folder, device, count, *words, *more)]
                said = (Path(folder) / "rank0.txt").read_text().strip().splitlines()
                check(not any(codes), f"{way} {precision} {part}: {codes}: {said[-1] if said else 'no output'}")
            seconds[f"{way} {precision} {part}"] = time.perf_counter() - began
    return seconds | {"ranks": ranks}


def killed_rank(device: torch.device) -> Figures:
    """13b: seconds from the death of one rank to the end of the other."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        raise SkipError("NCCL needs one GPU per rank, and this machine has one")
    with tempfile.TemporaryDirectory() as folder:
        first, second = _start(folder, device, 2, f"run.out={folder}/run", "run.steps=100000")
        metrics = Path(folder) / "run/metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not metrics.is_file():
            time.sleep(0.5)
        began = time.perf_counter()
        second.send_signal(signal.SIGKILL)
        try:
            first.wait(120)
        finally:
            first.kill()
        seconds = time.perf_counter() - began
        check(metrics.is_file() and seconds < 120, f"the other rank ended after {seconds:.0f} s; expected under 120")
        return {"seconds": seconds}
