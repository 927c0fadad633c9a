"""RobusTok's command for post-training; the same as scripts/train_tokenizer.sh, but --data-path is the pair set that
post_train_data.py made and --pair-set the folder with the real images."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from common import config  # noqa: E402
from tokenizer.train import post_train  # noqa: E402

if __name__ == "__main__":
    config.main(post_train)
