"""RobusTok's command for post-training data; the same as scripts/make_pairs.sh, which writes codes and no PNGs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from autoregressive.make_pairs import main  # noqa: E402
from common import config  # noqa: E402

if __name__ == "__main__":
    config.main(main)
