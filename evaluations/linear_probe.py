"""Linear probe: how well do frozen features of a tokenizer or a generator tell the classes apart?

    bash scripts/train_lin_probe.sh --vq-ckpt RUN --data-path DIR --val-path DIR --out OUT
    bash scripts/train_lin_probe_gpt.sh --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR --val-path DIR --out OUT

trains one linear layer on features averaged over an image's tokens, then writes its top-1 accuracy on the validation
images to `<out>/results.json`. Interrupted, the same command continues; --eval measures a probe without training it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from autoregressive.legacy import COMMON_FLAGS
from common import config
from common.config import MISSING, opt
from common.flags import half, joined, switch
from common.settings import LogConfig


@dataclass
class ProbeConfig:
    """Defaults are the papers': 90 epochs, 10 of them warm-up, LARS at 0.1 per 256 images."""

    out: str = opt(MISSING, "result folder; the same command again resumes from it")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run")
    vq_weights: str = opt("ema", "tokenizer weights: ema | model")
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, "must be the tokenizer's; null = take it from there")
    gpt_ckpt: str | None = opt(None, "generator whose features are probed; null = the tokenizer's are")
    gpt_weights: str = opt("model", "generator weights: model | ema")
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    n_layer: int | None = opt(None, "generator block whose output is probed, 1-based; null = the middle one")
    num_code: int | None = opt(None, "tokens read per image; null = all")
    features: str = opt(
        "encoder", "of a tokenizer: encoder (after its last norm) | fix_dim (projected) | decoder (semantic depth)"
    )
    data_path: str | None = opt(None, "image folder to train the probe on; not needed with eval")
    val_path: str = opt(MISSING, "image folder of the same classes to measure it on; centre crops are taken")
    crop: str = opt("random", "training crops: random (short side in [size, size/0.8], random square) | center")
    flip: bool = opt(True, "mirror half of the training images")
    epochs: int = opt(90, "passes over the training images")
    warmup_epochs: int = opt(10, "of these, epochs of linear warm-up from 0")
    blr: float = opt(0.1, "learning rate per 256 images of the global batch")
    lr: float | None = opt(None, "learning rate as it is, instead of blr")
    min_lr: float = opt(0.0, "where the cosine ends")
    weight_decay: float = opt(0.0, "weight decay of the linear layer's matrix")
    per_proc_batch_size: int = opt(128, "images at once, per process")
    num_workers: int = opt(0, "loader processes per rank")
    seed: int = opt(0, "seed of the linear layer, the data order and the crops")
    precision: str = opt("none", "of the frozen models: none (fp32) | bf16; the probe itself is fp32")
    ckpt_epoch: int = opt(10, "epochs between checkpoints of the probe")
    eval: bool = opt(False, "train nothing, measure lin_probe_ckpt (or the probe in out)")
    lin_probe_ckpt: str | None = opt(None, "for eval: a probe's run or checkpoint; null = the one in out")
    device: str = opt("auto", "auto | cpu | cuda")
    log: LogConfig = field(default_factory=LogConfig)


def _data_root(value: str) -> list[str]:
    """The papers' one folder with both parts of ImageNet."""
    return [f"data_path={value}/ILSVRC2012_img_train", f"val_path={value}/ILSVRC2012_img_val"]


FLAGS: dict[str, Any] = {
    **COMMON_FLAGS,
    "data-root": _data_root,
    "model-config": "tok_config",
    "save-path": "out",
    "batch-size": "per_proc_batch_size",
    "global-seed": "seed",
    "mixed-precision": half("precision"),
    "log-every": "log.every",
    "fix-dim": switch("features=fix_dim"),
    "from-decoder": switch("features=decoder"),
    "dist-eval": switch(),  # the validation images are always shared out
}


def main() -> None:
    settings = config.parse(ProbeConfig, joined(sys.argv[1:], "results/lin_probe"), aliases=FLAGS, about=__doc__)
    from evaluations.linear_probe_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
