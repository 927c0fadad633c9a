"""Whether everything works on this machine's GPUs, and how fast: `bash scripts/check_gpu.sh`.

Prints a line per check (pass, fail, or skipped and why), writes all figures to a JSON file, and exits with 1 if a check
failed. `--device cpu` runs what a CPU can stand in for, at toy sizes: one or two minutes of one core.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.check_gpu import lines, processes
from benchmarks.run import ROOT
from common import config
from common.config import opt
from common.errors import UserError

__all__ = ["LINES", "main", "run"]

LINES: dict[str, tuple[str, Callable[[torch.device], lines.Figures]]] = {
    "1": ("driver, torch and GPUs", lines.machine),
    "2": ("parallelism and precision", processes.matrix),
    "3": ("recorded codes are eager codes", lines.recorded_codes),
    "4": ("attention kernels, 255 new lengths", lines.attention_lengths),
    "5": ("compiled steps", lines.compiled_step),
    "6": ("peak memory against the estimate", lines.memory),
    "7": ("steps do not wait", lines.waits),
    "8": ("every part in bf16 against the CPU", lines.parts_in_bf16),
    "9": ("codes and images do not depend on device and batch", lines.same_codes),
    "10": ("8-bit weights", lines.eight_bits),
    "11": ("metrics on the device", lines.metrics),
    "12": ("throughput", lines.throughput),
    "13a": ("loading of JPEG files", lines.loading),
    "13b": ("a killed rank", processes.killed_rank),
}
"""Number -> title, check."""


@dataclass
class CheckConfig:
    device: str = opt("auto", "auto | cuda | cpu")
    only: list[str] | None = opt(None, "numbers of lines, e.g. [1,4,7]; null = all")
    out: str | None = opt(None, "JSON file; null = benchmarks/results/check-<device>-<date>.json")


def run(device: torch.device, numbers: list[str], out: Path) -> bool:
    """Run the lines, write the JSON file; returns whether none failed."""
    found: dict[str, Any] = {}
    for number in numbers:
        title, line = LINES[number]
        began = time.perf_counter()
        try:
            entry: dict[str, Any] = {"result": "pass", "figures": line(device)}
            said = ", ".join(f"{key} {_short(value)}" for key, value in entry["figures"].items())
        except lines.SkipError as reason:
            entry, said = {"result": "skipped", "why": str(reason)}, str(reason)
        except Exception as error:  # every failure of a line is a result
            said = str(error) if isinstance(error, lines.CheckError) else f"{type(error).__name__}: {error}"
            entry = {"result": "fail", "why": said}
        found[number] = {"title": title, **entry, "seconds": time.perf_counter() - began}
        print(f"{number:3s} {entry['result']:7s} {title}: {' '.join(said.split())[:500]}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        out.write_text(json.dumps({"device": name, "torch": torch.__version__, "lines": found}, indent=1) + "\n")
    return all(entry["result"] != "fail" for entry in found.values())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    options = config.parse(CheckConfig, about=__doc__)
    unknown = [number for number in options.only or () if number not in LINES]
    if unknown:
        raise UserError(f"only got {unknown[0]!r}; expected some of {', '.join(LINES)}")
    kind = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but no CUDA device is visible; pass --device cpu")
    if kind == "cpu":
        print("no GPU is checked: the CPU stands in where it can, at toy sizes")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    out = Path(options.out or ROOT / "benchmarks" / "results" / f"check-{kind}-{today}.json")
    good = run(torch.device(kind), options.only or list(LINES), out)
    print(out)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    config.main(main)
