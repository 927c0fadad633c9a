"""RobusTok's command for sampling; the same as python -m autoregressive.sample."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from autoregressive.sample import main  # noqa: E402
from common import config  # noqa: E402

if __name__ == "__main__":
    config.main(main)
