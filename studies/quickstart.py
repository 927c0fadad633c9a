"""The whole method at small scale, stage by stage: `bash scripts/quickstart.sh`.

Every stage is a job that can be run by itself; its command is printed. An interrupted stage continues with the same
command, and a finished one is not repeated. Results: `<out>/report.html`, `<out>/metrics.json`, and `<out>/stages.json`
with seconds and peak memory.
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
EMBEDDED = {"emoji": "OpenMoji (openmoji.org), CC BY-SA 4.0", "photos": "see data/photos/LICENSES.md"}
"""Image folders that a job makes from installed packages -> their credit."""
FAST = {
    "tokenizer": ["run.steps=300"], "codes": ["crop_ranges=[1.1]"], "held_out_codes": ["crop_ranges=[1.1]"],
    "gpt": ["run.steps=200"], "drawings": ["--every", "4"],
}  # fmt: skip
"""What --fast adds to the words of a stage."""
Spend = Callable[[list[str]], tuple[int, float]]


@dataclass
class QuickstartConfig:
    out: str = opt("results/quickstart", "folder of all results")
    data: str = opt("emoji", "emoji | photos | your own folder with train/<class>/* and val/<class>/*")
    fast: bool = opt(False, "an eighth of the training steps: about 3.5 minutes on two cores, worse pictures")
    num_tokens: list[int] = opt([1, 2, 4, 8, 16, 32, 64], "token counts that are measured and shown")
    processes: int = opt(0, "processes that train, on a CPU; 0 = one per core, at most 4")


def stages(options: QuickstartConfig) -> dict[str, list[str]]:
    """Stage -> the words after `python -m`, in the order they run."""
    out, lengths = Path(options.out), f"[{','.join(map(str, options.num_tokens))}]"
    root = f"data/{options.data}" if options.data in EMBEDDED else options.data
    train, val = f"{root}/train", f"{root}/val"
    tokenizer, codes, held_out, gpt = (str(out / name) for name in ("tokenizer", "codes", "held_out_codes", "gpt"))
    extract = ["autoregressive.extract_codes", "--vq-ckpt", tokenizer]
    many = ["--ten-crop", "crop_ranges=[1.1,1.3]", "--precision", "bf16"]
    made = {options.data: [f"studies.{options.data}", "--out", root]} if options.data in EMBEDDED else {}
    credit = ["--credit", EMBEDDED[options.data]] if options.data in EMBEDDED else []
    found = made | {
        "tokenizer": [
            *parallel(options), "tokenizer.train", "--config", str(CONFIGS / "tokenizer.yaml"), f"data.root={train}",
            f"val_root={val}", f"run.out={tokenizer}",
        ],
        "codes": [*parallel(options), *extract, "--data-path", train, "--code-path", codes, *many],
        "held_out_codes": [*extract, "--data-path", val, "--code-path", held_out, *many],
        "gpt": [
            *parallel(options), "autoregressive.train", "--config", str(CONFIGS / "gpt.yaml"), f"data.codes={codes}",
            f"data.val_codes={held_out}", "model.num_classes=null", f"run.out={gpt}",
        ],
        "baselines": [
            "studies.baselines", "--train-path", train, "--data-path", val, "--out", str(out / "baselines.json"),
        ],
        "reconstruction": [
            "evaluations.reconstruction", "--vq-ckpt", tokenizer, "--data-path", val, "--num-tokens", lengths,
            "--num-previews", "12", "--sample-dir", str(out / "reconstruction"),
        ],
        "drawings": [
            "studies.drawings", "--gpt-ckpt", gpt, "--vq-ckpt", tokenizer, "--train-path", train, "--val-path", val,
            "--out", str(out / "drawings"),
        ],
        "report": ["studies.report", "--results", str(out), *credit],
    }  # fmt: skip
    return {stage: words + FAST.get(stage, []) if options.fast else words for stage, words in found.items()}


def parallel(options: QuickstartConfig) -> list[str]:
    """Words that start a job in several processes of one thread each, which two cores serve better than two threads."""
    count = options.processes or min(4, 1 << ((os.cpu_count() or 1).bit_length() - 1))
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"] if count > 1 else []


class Ledger:
    """`stages.json`: seconds and peak memory of every stage, summed over all runs until it was finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text())["stages"]
        except (OSError, ValueError, KeyError):
            self.entries = {}

    def add(self, stage: str, command: list[str], seconds: float, gigabytes: float, finished: bool) -> None:
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


def run(options: QuickstartConfig, spend: Spend | None = None) -> None:
    """Run all stages; `spend(words)` runs one and returns its exit status and its peak memory in GB.

    Raises: UserError when a stage fails, KeyboardInterrupt when it was interrupted.
    """
    ledger, todo = Ledger(Path(options.out) / "stages.json"), stages(options)
    for number, (stage, words) in enumerate(todo.items(), start=1):
        print(f"\n[{number}/{len(todo)}] {stage}: python -m {shlex.join(words)}", flush=True)
        start = time.perf_counter()
        status, gigabytes = (spend or _spend)(words)
        ledger.add(stage, words, time.perf_counter() - start, gigabytes, finished=status == 0)
        if status in (CTRL_C, REQUEUE, -2, -15):
            raise KeyboardInterrupt
        if status != 0:
            raise UserError(f"stage {stage!r} ended with status {status}; its message is above")


def _spend(words: list[str]) -> tuple[int, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if words[0] == "torch.distributed.run":
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", *words], env=environment)
    while True:
        try:
            _, status, usage = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:
            continue  # the stage received the signal as well, and saves before it ends
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    run(config.parse(QuickstartConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
