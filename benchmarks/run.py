"""Speed of the jobs, each beside plain eager code that does the same in the same process at the same precision.

    bash scripts/benchmark.sh --only sampling

Every case is warmed up and timed at least five times, plain and ours in turn; the ratio is that of the medians, and
`roofline_share` is the share of what the machine's arithmetic or memory allows. Results go to
benchmarks/results/<device>-<date>.json. Every benchmark runs in a process of its own.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import config
from common.config import opt
from common.errors import UserError
from evaluations.figures import markdown

__all__ = ["BENCHMARKS", "main", "table"]

ROOT = Path(__file__).parents[1]
BENCHMARKS = {
    "sampling": "benchmarks.sampling:sampling",
    "images": "benchmarks.sampling:images",
    "extraction": "benchmarks.sampling:extraction",
    "training": "benchmarks.training:training",
    "evaluation": "benchmarks.evaluation:evaluation",
    "reading": "benchmarks.reading:reading",
}


@dataclass
class BenchmarkConfig:
    device: str = opt("auto", "auto | cpu | cuda")
    only: str | None = opt(None, f"one of {', '.join(BENCHMARKS)}; null = all, about 20 minutes on two cores")
    threads: int | None = opt(None, "threads on a CPU; null = as many as it has")
    out: str | None = opt(None, "result file; null = benchmarks/results/<device>-<date>.json")
    here: str | None = opt(None, "internal: run this benchmark in this process and print its JSON")


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, a row per case."""
    rows = []
    for name, cases in found["benchmarks"].items():
        for case, values in cases.items():
            row = {"benchmark": name, "case": case}
            row |= {way: f"{values[way]['items_per_s']:.3g}/s" for way in ("plain", "ours") if way in values}
            if "ratio" in values:
                row["ratio (range)"] = "{:.2f} ({:.2f}-{:.2f})".format(values["ratio"], *values["ratio_range"])
            if "roofline_share" in values:
                row["of the roofline"] = f"{values['roofline_share']:.0%}"
            rows.append(row)
    return markdown(("benchmark", "case", "plain", "ours", "ratio (range)", "of the roofline"), rows)


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
    options = config.parse(BenchmarkConfig, about=__doc__)
    unknown = {options.only, options.here} - {None, *BENCHMARKS}
    if unknown:
        raise UserError(f"there is no benchmark {sorted(unknown)[0]!r}; known: {', '.join(BENCHMARKS)}")
    import torch

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is visible; measure the CPU with --device cpu")
    if options.here:
        module, _, function = BENCHMARKS[options.here].partition(":")
        torch.manual_seed(0)
        print(json.dumps(getattr(importlib.import_module(module), function)(torch.device(device))))
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    out = Path(options.out or ROOT / "benchmarks" / "results" / f"{device}-{today}.json")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    threads = options.threads or os.cpu_count()
    found: dict[str, Any] = {
        "device": name, "threads": threads, "torch": torch.__version__, "date": today, "benchmarks": {},
    }  # fmt: skip
    for benchmark in [options.only] if options.only else BENCHMARKS:
        print(f"{benchmark} ...", file=sys.stderr)
        found["benchmarks"][benchmark] = _measure(benchmark, device, threads)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")  # after each, so that an interruption loses one
    print(f"{table(found)}\n\n{out}")


if __name__ == "__main__":
    config.main(main)
