"""RobusTok's command for training a tokenizer; the same as scripts/train_tokenizer.sh."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from common import config  # noqa: E402
from tokenizer.train import main  # noqa: E402

if __name__ == "__main__":
    config.main(main)
