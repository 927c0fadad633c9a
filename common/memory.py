"""How much memory this process has used."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, in GB.

    Linux has two figures for it; `ru_maxrss` begins with what the process that started this one had.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # macOS counts bytes
