"""The whole method on the embedded photographs, stage by stage: `bash scripts/quickstart.sh`.

Every stage is a job that people run by themselves, too; its command is printed. Each goes on where it stopped and
repeats nothing that is finished, so Ctrl-C and the same command again continues. Seconds and peak memory go to
`<out>/stages.json`, and `<out>/report.html` and `<out>/metrics.json` come last.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.config import opt
from common.errors import UserError
from common.signals import CTRL_C, REQUEUE

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "quickstart"


@dataclass
class QuickstartConfig:
    out: str = opt("results/quickstart", "folder of all results")
    data: str = opt("data/photos", "folder of the image crops; made if it is not there")
    num_tokens: list[int] = opt([8, 16, 32, 64], "token counts that are measured and shown")
    num_samples: int = opt(5200, "images sampled, classes taking turns")
    cfg_scale: float = opt(3.0, "guidance scale of the samples")
    temperature: float = opt(0.65, "sampling temperature of the samples")
    cfg_schedule: str = opt("constant", "guidance schedule of the samples")
    num_reference_images: int = opt(5200, "training images whose features samples are compared with")


def stages(options: QuickstartConfig) -> dict[str, list[str]]:
    """Stage -> the words after `python -m`, in the order they run."""
    out, train, val = Path(options.out), f"{options.data}/train", f"{options.data}/val"
    tokenizer, codes, gpt = (str(out / name) for name in ("tokenizer", "codes", "gpt"))
    features = ["--frechet", "fd_efficientnet_lite2"]
    lengths = f"[{','.join(map(str, options.num_tokens))}]"
    return {
        "photos": ["studies.photos", "--out", options.data],
        "tokenizer": [
            "tokenizer.train", "--config", str(CONFIGS / "tokenizer.yaml"), f"data.root={train}", f"val_root={val}",
            f"run.out={tokenizer}",
        ],
        "baselines": [
            "studies.baselines", "--train-path", train, "--data-path", val, "--out", str(out / "baselines.json"),
        ],
        "codes": [
            "autoregressive.extract_codes", "--data-path", train, "--vq-ckpt", tokenizer, "--code-path", codes,
        ],
        "gpt": [
            "autoregressive.train", "--config", str(CONFIGS / "gpt.yaml"), f"data.codes={codes}", f"run.out={gpt}",
        ],
        "reconstruction": [
            "evaluations.reconstruction", "--vq-ckpt", tokenizer, "--data-path", val, "--num-tokens", lengths,
            "--perceptual", "perceptual_efficientnet_lite0", *features, "--num-previews", "13",
            "--sample-dir", str(out / "reconstruction"),
        ],
        "generation": [
            "evaluations.generation", "--gpt-ckpt", gpt, "--vq-ckpt", tokenizer, "--cfg-scale", str(options.cfg_scale),
            "--cfg-schedule", options.cfg_schedule, "--temperature", str(options.temperature), "--precision", "bf16",
            "--vq-precision", "bf16", "--batch-size", "260", "--num-fid-samples", str(options.num_samples),
            "--reference-path", train, "--held-out-path", val,
            "--num-reference-images", str(options.num_reference_images), *features,
            "--sample-dir", str(out / "generation"),
        ],
        "report": ["studies.report", "--results", str(out)],
    }


class Ledger:
    """`stages.json`: seconds and peak memory of every stage, over all runs until it was finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text())["stages"]
        except (OSError, ValueError, KeyError):
            self.entries = {}

    def add(self, stage: str, command: list[str], seconds: float, gigabytes: float, finished: bool) -> None:
        """Time counts until a stage is finished; asking a finished one again costs seconds that are not its own."""
        entry = self.entries.get(stage)
        if entry is None or entry["command"] != command:
            entry = {"command": command, "seconds": 0.0, "peak_rss_gb": 0.0, "finished": False}
        if not entry["finished"]:
            entry["seconds"] = round(entry["seconds"] + seconds, 2)
        entry["peak_rss_gb"] = round(max(entry["peak_rss_gb"], gigabytes), 3)
        entry["finished"] = entry["finished"] or finished
        self.entries[stage] = entry
        body = {
            "seconds": {name: each["seconds"] for name, each in self.entries.items()},
            "peak_rss_gb": max(each["peak_rss_gb"] for each in self.entries.values()),
            "stages": self.entries,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(body, indent=1) + "\n")
        partial.replace(self.path)


def run(options: QuickstartConfig, spend: Callable[[list[str]], tuple[int, float]] | None = None) -> None:
    """Run all stages; `spend(words)` runs one and returns its status and its peak memory in GB.

    Raises: UserError when a stage fails, KeyboardInterrupt when it was interrupted.
    """
    ledger = Ledger(Path(options.out) / "stages.json")
    for number, (stage, words) in enumerate(stages(options).items(), start=1):
        print(f"\n[{number}/{len(stages(options))}] {stage}: python -m {shlex.join(words)}", flush=True)
        start = time.perf_counter()
        status, gigabytes = (spend or _spend)(words)
        ledger.add(stage, words, time.perf_counter() - start, gigabytes, finished=status == 0)
        if status in (CTRL_C, REQUEUE, -2, -15):
            raise KeyboardInterrupt
        if status != 0:
            raise UserError(f"stage {stage!r} ended with status {status}; its message is above")


def _spend(words: list[str]) -> tuple[int, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment)
    while True:
        try:
            _, status, usage = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:
            continue  # the stage has heard the Ctrl-C as well, and saves before it leaves
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    run(config.parse(QuickstartConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
