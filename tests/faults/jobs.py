"""Small trainings in processes of their own, started from a server that has imported torch once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import autoregressive.train
import tokenizer.train
from autoregressive.config import TrainConfig as GeneratorConfig
from autoregressive.paper_flags import TRAIN_FLAGS as GENERATOR_FLAGS
from common import checkpoint, config, sharded  # noqa: F401  sharded: imported once for all processes
from common.codes import ChunkedWriter
from tests.faults.inject import Fault, inject
from tokenizer.config import TrainConfig as TokenizerConfig
from tokenizer.paper_flags import TRAIN_FLAGS as TOKENIZER_FLAGS

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.faults.jobs"])

RUN = """
run: {steps: 12, checkpoint_every: 2, keep_last: 2, milestone_every: 0, precision: none, device: cpu}
log: {every: 3}
data: {batch_size: 4}
"""
TOKENIZER = RUN + """
model:
  image_size: 16
  z_channels: 16
  layout: {num_tokens: 8, redundant: 4}
  encoder: &part
    name: tokenizer.tiny:Tiny1dEncoder
    cnn: {channels: 32, multipliers: [1], patch: 4}
    transformer: {width: 32, layers: 1, heads: 2}
  decoder: {<<: *part, name: "tokenizer.tiny:Tiny1dDecoder", semantic_head: null}
  quantizer: {name: vq, codebook_size: 32, entropy_weight: 0.1, refresh_every: 2}
losses: {perceptual: null}
adversary: {start: 1, discriminator: {name: patchgan, channels: 8, layers: 1}, lecam: {}}
regularizers:
  nested_dropout: {min_tokens: 2}
optim: {lr: 1.0e-3}
ema_decay: 0.9
"""
GENERATOR = RUN + """
model: {name: gpt, width: 32, layers: 1, heads: 2, class_dropout: 0.3, residual_dropout: 0.2}
input_noise: 0.2
ema_decay: 0.9
"""


def make_data(root: Path) -> Path:
    """images/ and codes/ for both jobs."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "images" / name).mkdir(parents=True)
        for index in range(5):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{index}.png")
    about = {"num_images": 10, "num_augmentations": 2, "num_tokens": 8, "codebook_size": 32, "classes": ["a", "b"]}
    writer = ChunkedWriter(root / "codes", {**about, "tokenizer": None})
    writer.prepare()
    writer.write(0, rng.integers(0, 32, (10, 2, 8)))
    writer.finish([index % 2 for index in range(10)])
    (root / "tokenizer.yaml").write_text(TOKENIZER)
    (root / "generator.yaml").write_text(GENERATOR)
    return root


def start(
    kind: str, data: Path, out: Path, *words: str, ranks: int = 1, fault: Fault | None = None
) -> list[BaseProcess]:
    """Begin (or go on with) a run; one process a rank."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    common = (kind, data, out, words, ranks, port, fault)
    started = [PROCESSES.Process(target=_rank, args=(rank, *common)) for rank in range(ranks)]
    for process in started:
        process.start()
    return started


def finish(started: list[BaseProcess], timeout_s: float = 300.0) -> list[int]:
    """Exit codes by rank (-9 = killed). Fails when a process hangs."""
    end = time.monotonic() + timeout_s
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    hanging = [rank for rank, process in enumerate(started) if process.exitcode is None]
    for process in started:
        process.kill()
    assert not hanging, f"ranks {hanging} still ran after {timeout_s} s"
    return [process.exitcode for process in started]


def train(kind: str, data: Path, out: Path, *words: str, **options: Any) -> list[int]:
    return finish(start(kind, data, out, *words, **options))


def intact(out: Path) -> Path | None:
    """The newest complete checkpoint, which is also what was written."""
    found = checkpoint.newest(out)
    assert found is None or not checkpoint.damaged(found)
    return found


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Everything a run ends with that must not depend on how often it was interrupted: weights, and logged figures."""
    newest = intact(out)
    names = sorted(path.stem for path in newest.glob("*.safetensors"))
    weights = {
        f"{name}.{key}": value for name in names for key, value in checkpoint.read_weights(newest, name).items()
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]
    return weights, timeless


def assert_same(one: Path, two: Path) -> None:
    (weights, lines), (others, other_lines) = outcome(one), outcome(two)
    assert weights.keys() == others.keys() and lines == other_lines
    assert [key for key, value in weights.items() if not torch.equal(value, others[key])] == []


def _rank(
    rank: int, kind: str, data: Path, out: Path, words: tuple[str, ...], ranks: int, port: int, fault: Fault | None
) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = open(f"{out}.rank{rank}.txt", "a", buffering=1)  # noqa: SIM115
    if fault:
        inject(fault, rank)
    if kind == "tokenizer":
        schema, flags, run = TokenizerConfig, TOKENIZER_FLAGS, tokenizer.train.run
        given = [f"data.root={data}/images"]
    else:
        schema, flags, run = GeneratorConfig, GENERATOR_FLAGS, autoregressive.train.run
        given = [f"data.codes={data}/codes"]
    settings = ["--config", f"{data}/{kind}.yaml", f"run.out={out}", *given, *words]
    config.main(lambda: run(config.parse(schema, settings, aliases=flags)))


__all__ = ["assert_same", "finish", "intact", "make_data", "outcome", "start", "train"]
