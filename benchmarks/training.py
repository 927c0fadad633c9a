"""Training throughput: images a second and model FLOPs utilisation of whole steps, optimizer and losses included.

    python -m benchmarks.training [--threads 2] [--repeats 7] [--out benchmarks/results/training.json]

Every case runs in a fresh process on random images or codes, so no data are needed and none are waited for; the papers'
frozen networks have their embedded stand-ins. A step's FLOPs are counted (common/estimate.py), its seconds are the
median of steps timed one by one after a warm-up. MFU is FLOPs over seconds, as a share of what one large matrix product
reaches on the same device in the same precision.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Work, compare, matrix_rate, wait
from common import config
from common.dist import World
from common.errors import UserError
from common.estimate import measure
from common.log import peak_memory_gb
from common.options import EstimateConfig
from common.trainee import Trainee

ROOT = Path(__file__).parents[1]
WARM_UP = 3

STAND_INS = [
    "losses.perceptual.name=efficientnet_lite0", "regularizers.semantic.teacher.name=efficientnet_lite0",
    "model.decoder.semantic_head.width=112", "data.root=none",
]  # fmt: skip
CASES: dict[str, dict[str, tuple[str, int, list[str]]]] = {
    "cpu": {
        "quickstart tokenizer": ("configs/quickstart/tokenizer.yaml", 32, []),
        "quickstart GPT": ("configs/quickstart/gpt.yaml", 64, []),
        "tokenizer S-S": ("configs/vq/VQ_SS256.yaml", 2, STAND_INS),
        "GPT-B": ("configs/gpt/GPT-B.yaml", 8, []),
    },
    "cuda": {
        "tokenizer S-S": ("configs/vq/VQ_SS256.yaml", 32, STAND_INS),
        "tokenizer S-S, compiled": ("configs/vq/VQ_SS256.yaml", 32, [*STAND_INS, "run.compile=true"]),
        "tokenizer B-L": ("configs/vq/VQ_BL256.yaml", 32, STAND_INS),
        "GPT-B": ("configs/gpt/GPT-B.yaml", 128, []),
        "GPT-B, compiled": ("configs/gpt/GPT-B.yaml", 128, ["run.compile=true"]),
        "GPT-L": ("configs/gpt/GPT-L.yaml", 64, []),
        "GPT-XL": ("configs/gpt/GPT-XL.yaml", 64, ["run.recompute=true"]),
    },
}
"""Device -> case -> config, images a step, further words."""


def run(threads: int = 2, repeats: int = 7, cases: list[str] | None = None) -> dict[str, Any]:
    """Measure the cases of this machine's device, all of them or those named."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found: dict[str, Any] = {"device": name, "threads": threads, "torch": torch.__version__, "cases": {}}
    for case in cases or CASES[device]:
        words = [sys.executable, "-m", "benchmarks.training", "--case", case, "--repeats", str(repeats)]
        done = subprocess.run(words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        print(case, json.dumps(found["cases"][case]), file=sys.stderr)
    return found


def prepare(
    case: str, device: torch.device, words: list[str]
) -> tuple[Any, Callable[[World], Trainee], Callable[[int], dict[str, torch.Tensor]]]:
    """A case's settings with `words` added, what builds its trainer, and random batches.

    Raises: UserError for an unknown case.
    """
    if case not in CASES[device.type]:
        raise UserError(f"unknown case {case!r}; on this device there are: {', '.join(CASES[device.type])}")
    path, size, own = CASES[device.type][case]
    words = ["--config", str(ROOT / path), f"data.batch_size={size}", f"run.device={device.type}", *own, *words]
    job = "autoregressive" if "gpt" in path else "tokenizer"
    settings = config.parse(importlib.import_module(f"{job}.config").TrainConfig, words)
    return settings, *importlib.import_module(f"{job}.train").without_data(settings)


def measure_case(case: str, repeats: int, batch_size: int | None = None) -> dict[str, Any]:
    """One case, in this process.

    Raises: UserError for an unknown case.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, build, batch = prepare(case, device, [f"data.batch_size={batch_size}"] if batch_size else [])
    size = settings.data.batch_size
    cost = measure(build, batch, size, settings.run, EstimateConfig())
    trainee = build(World(0, 1, device))
    images = {key: value.to(device) for key, value in batch(size).items()}

    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        trainee.step(images, settings.run.steps - 1)
        wait(device)
        seconds.append(time.perf_counter() - start)
    seconds = seconds[WARM_UP:]
    median = statistics.median(seconds)
    reached, possible = cost.flops / median, matrix_rate(device, settings.run.precision)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_memory_gb()
    return {
        "config": CASES[device.type][case][0], "precision": settings.run.precision, "batch_size": size,
        "parameters": cost.parameters,
        "gflop_per_image": cost.flops / size / 1e9,
        "step_s": {"median": median, "min": min(seconds), "max": max(seconds), "steps": len(seconds)},
        "images_per_s": size / median,
        "tflops": reached / 1e12, "matrix_tflops": possible / 1e12, "mfu": reached / possible,
        "peak_memory_gb": peak, "estimated_memory_gb": cost.memory_bytes / 1e9,
    }  # fmt: skip


def tokenizer_training(device: torch.device) -> dict[str, Any]:
    """Tokenizer S-S at 256 pixels: all losses and the discriminator."""
    return _steps("tokenizer S-S", device)


def gpt_training(device: torch.device) -> dict[str, Any]:
    """GPT-B on 256 codes an image."""
    return _steps("GPT-B", device)


def _steps(case: str, device: torch.device) -> dict[str, Any]:
    count = CASES[device.type][case][1]
    (ours, images, flops), (plain, _, _) = (_trainee(case, device, precision) for precision in ("bf16", "none"))
    for optimizer in (plain.optimizer, *([plain.adversary.optimizer] if getattr(plain, "adversary", None) else [])):
        for options in (optimizer.defaults, *optimizer.param_groups):
            options |= {"fused": False, "foreach": False}
    last = 10**9  # the discriminator is in it from some step on
    return {
        f"{case}, {count} images a step": compare(
            partial(plain.step, images, last), partial(ours.step, images, last), count, device, work=Work(flops)
        )
    }


def _trainee(case: str, device: torch.device, precision: str) -> tuple[Trainee, dict[str, torch.Tensor], float]:
    settings, build, batch = prepare(case, device, [f"run.precision={precision}"])
    count = settings.data.batch_size
    flops = measure(build, batch, count, settings.run, EstimateConfig()).flops
    images = {key: value.to(device) for key, value in batch(count).items()}
    return build(World(0, 1, device)), images, flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/training.json")
    parser.add_argument("--case", help="measure this one only, here, and print it")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure_case(given.case, given.repeats)))
        return
    found = run(given.threads, given.repeats)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
