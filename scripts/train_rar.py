"""RobusTok's command for training RAR; the same as scripts/train_rar.sh."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from autoregressive.train import main  # noqa: E402
from common import config  # noqa: E402

if __name__ == "__main__":
    sys.argv[1:1] = ["--config", str(ROOT / "configs/generator/RAR-B.yaml")]
    config.main(main)
