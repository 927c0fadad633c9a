"""What the jobs cost in steady state, each beside a plain way of doing the same in the same process.

    bash scripts/benchmark.sh [--device cpu|cuda] [--only NAME] [--out FILE]

Plain is eager float32 without reuse, as the original projects do it. Every case is warmed up and timed at least five
times, plain and ours in turn; the ratio is that of the medians, and `roofline_share` says how near ours comes to what
the machine's arithmetic or memory allows. Results go to benchmarks/results/<device>-<date>.json; every benchmark has a
process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError

__all__ = ["BENCHMARKS", "main", "table"]

ROOT = Path(__file__).parents[1]
BENCHMARKS = {
    "sampling": "benchmarks.sampling:sampling",
    "extraction": "benchmarks.tokenizing:extraction",
    "tokenizer_training": "benchmarks.steps:tokenizer_training",
    "gpt_training": "benchmarks.steps:gpt_training",
    "evaluation": "benchmarks.evaluation:evaluation",
    "sampling_growth": "benchmarks.sampling:sampling_growth",
    "extraction_growth": "benchmarks.tokenizing:extraction_growth",
}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown: a row a case, then a row a size for what grows."""
    rows = ["| benchmark | case | plain | ours | ratio (range) | of the roofline |", "|-|-|-|-|-|-|"]
    growth = ["| benchmark | images | seconds | seconds an image | peak memory, GB |", "|-|-|-|-|-|"]
    for name, cases in found["benchmarks"].items():
        for case, values in cases.items():
            if "ratio" in values:
                share = f"{values['roofline_share']:.0%}" if "roofline_share" in values else ""
                plain, ours = (f"{values[way]['items_per_s']:.3g}/s" for way in ("plain", "ours"))
                spread = "{:.2f}-{:.2f}".format(*values["ratio_range"])
                rows.append(f"| {name} | {case} | {plain} | {ours} | {values['ratio']:.2f} ({spread}) | {share} |")
            else:
                growth.append(
                    f"| {name} | {case} | {values['seconds']:.2f} | {values['seconds_per_image']:.3f} | "
                    f"{values['peak_memory_gb']:.2f} |"
                )
    return "\n".join([*rows, "", *growth])


def _measure(name: str, device: str, threads: int) -> dict[str, Any]:
    """One benchmark in a fresh process."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    words = [sys.executable, "-m", "benchmarks.run", "--device", device, "--here", name]
    done = subprocess.run(
        words, env=os.environ | variables | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", metavar="NAME", choices=BENCHMARKS, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", choices=BENCHMARKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is visible; measure the CPU with --device cpu")
    if given.here:
        module, _, function = BENCHMARKS[given.here].partition(":")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            print(json.dumps(getattr(importlib.import_module(module), function)(torch.device(given.device))))
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    out = given.out or ROOT / "benchmarks" / "results" / f"{given.device}-{today}.json"
    name = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    found: dict[str, Any] = {
        "device": name, "threads": given.threads, "torch": torch.__version__, "date": today, "benchmarks": {},
    }  # fmt: skip
    for benchmark in [given.only] if given.only else BENCHMARKS:
        print(f"{benchmark} ...", file=sys.stderr)
        found["benchmarks"][benchmark] = _measure(benchmark, given.device, given.threads)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")  # after each, so that an interruption loses one
    print(f"{table(found)}\n\n{out}")


if __name__ == "__main__":
    from common import config

    config.main(main)
