"""Look at a code store: decode some of its codes back to images.

    bash scripts/check_code_c2i.sh --code-path STORE --vq-ckpt RUN --sample-dir OUT

writes `<class>_<image>.png`, the image's augmentations side by side, for images spread evenly over the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import MISSING, opt


@dataclass
class CheckConfig:
    code_path: str = opt(MISSING, "code store")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run that made it")
    weights: str = opt("ema", "tokenizer weights: ema | model")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    sample_dir: str = opt("results/check_codes", "folder for the pictures")
    num_images: int = opt(16, "images shown")
    device: str = opt("auto", "auto | cpu | cuda")


def main() -> None:
    settings = config.parse(CheckConfig, aliases={**COMMON_FLAGS, "model-config": "tok_config"}, about=__doc__)
    from autoregressive.check_codes_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
