"""Validation loss of a generator: the mean cross-entropy of held-out images' codes, in nats.

    bash scripts/val_loss_c2i.sh --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR

encodes centre crops with the tokenizer (or reads --code-path, a code store of held-out images), shows every class and
weighs every code alike. Writes `val_loss.json` into the generator's run: loss, perplexity, loss per position.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import MISSING, opt
from common.flags import half


@dataclass
class ValLossConfig:
    gpt_ckpt: str = opt(MISSING, "generator checkpoint or run")
    gpt_weights: str = opt("model", "generator weights: model | ema")
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    data_path: str | None = opt(None, "image folder of held-out images; centre crops are taken; needs vq_ckpt")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run that made the generator's training codes")
    vq_weights: str = opt("ema", "tokenizer weights: ema | model")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, "must be the tokenizer's; null = take it from there")
    code_path: str | None = opt(None, "instead of images: a code store of held-out images, its first augmentation")
    num_images: int | None = opt(None, "the first so many images; null = all")
    out: str | None = opt(None, "result file; null = val_loss.json in the generator's run (or beside its file)")
    precision: str = opt("none", "generator: none (fp32) | bf16; the tokenizer stays fp32")
    per_proc_batch_size: int = opt(32, "images at a time, per process")
    num_workers: int = opt(0, "loader processes per rank")
    device: str = opt("auto", "auto | cpu | cuda")


FLAGS: dict[str, config.Alias] = {**COMMON_FLAGS, "precision": half("precision")}


def main() -> None:
    settings = config.parse(ValLossConfig, aliases=FLAGS, about=__doc__)
    from evaluations.val_loss_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
