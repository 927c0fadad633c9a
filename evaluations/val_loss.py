"""Validation loss of a generator: the mean cross-entropy of held-out images' codes, in nats.

    bash scripts/val_loss_c2i.sh --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR

encodes centre crops with the tokenizer (or reads --code-path, a code store of held-out images) and gives the generator
each image's class. Every code has the same weight. Writes `val_loss.json` into the generator's run: loss, perplexity,
loss per position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import autoregressive
from autoregressive.paper_flags import COMMON_FLAGS
from autoregressive.released import class_names, load_compatible
from autoregressive.train import position_losses
from common import config, dist, weight_choice
from common.checkpoint import resolve_folder
from common.codes import CodeStore
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels
from common.options import IMAGE_SIZE, PRECISIONS, WEIGHTS
from common.paper_flags import half
from common.provenance import read_provenance
from evaluations import harness, record


@dataclass
class ValLossConfig:
    gpt_ckpt: str = opt(MISSING, "generator checkpoint or run")
    gpt_weights: str = opt("model", "generator weights", WEIGHTS)
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    data_path: str | None = opt(None, "image folder of held-out images; centre crops are taken; needs vq_ckpt")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run that made the generator's training codes")
    vq_weights: str = opt("ema", "tokenizer weights", WEIGHTS)
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, IMAGE_SIZE)
    code_path: str | None = opt(None, "instead of images: a code store of held-out images, its first augmentation")
    num_images: int | None = opt(None, "only the first num_images; null = all")
    out: str | None = opt(None, "result file; null = val_loss.json in the generator's run (or beside its file)")
    precision: str = opt("none", "of the generator; none = fp32, as the tokenizer always is", PRECISIONS)
    per_proc_batch_size: int = opt(32, "images at a time, per process")
    num_workers: int = opt(0, "loader processes per rank")
    device: str = opt("auto", "auto | cpu | cuda")


FLAGS: dict[str, config.Alias] = {**COMMON_FLAGS, "precision": half("precision")}


NOT_IN_QUESTION = {
    "out": "where results go", "device": "equal up to rounding", "per_proc_batch_size": "speed", "num_workers": "speed",
    "gpt_model": "must agree with the checkpoint", "tok_config": "must agree with the checkpoint",
    "image_size": "must agree with the checkpoint",
}
"""Options that do not change the figures, with the reason."""

VERSION = 2


def run(config: ValLossConfig) -> dict[str, Any]:
    """Measure, write and return the record; an earlier one is reused for exactly the same question."""
    if bool(config.data_path) == bool(config.code_path):
        raise UserError("give either images (--data-path, with --vq-ckpt) or a code store (--code-path)")
    if config.data_path and not config.vq_ckpt:
        raise UserError("images need a tokenizer that encodes them; give --vq-ckpt RUN")
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: ValLossConfig, world: World) -> dict[str, Any]:
    path = Path(config.out) if config.out else _default_path(config.gpt_ckpt)
    weight_choice.announce("generator", config.gpt_ckpt, config.gpt_weights, "gpt-weights")
    dataset: ImageFolder | CodeStore
    if config.code_path:
        tokenizer = None
        model = autoregressive.load(config.gpt_ckpt, config.gpt_weights, world.device)
        recorded = read_provenance(config.gpt_ckpt).get("codes_of")
        dataset = CodeStore(config.code_path, model.num_tokens, classes=class_names(config.gpt_ckpt, model.num_classes))
        same = recorded is None or dataset.meta.get("codes_of") in (None, recorded)
        if dataset.codebook_size != model.codebook_size or not same:
            raise UserError(
                f"code store {config.code_path!r} (codebook of {dataset.codebook_size}) was not made by the tokenizer "
                f"that the generator (codebook of {model.codebook_size}) was trained with; pass codes of that one"
            )
    else:
        named = (config.tok_config, config.image_size)
        tokenizer = harness.load_tokenizer(config.vq_ckpt, config.vq_weights, world, *named, flag="vq-weights")
        model = load_compatible(config.gpt_ckpt, config.gpt_weights, world.device, tokenizer, config.gpt_model)
        names = class_names(config.gpt_ckpt, model.num_classes)
        dataset = open_images(config.data_path, tokenizer.image_size, classes=names)
    count = min(len(dataset), config.num_images or len(dataset))
    files = [Path(config.code_path) / "codes.npy"] if config.code_path else dataset.files(count)
    question = harness.question(
        config, "val_loss", VERSION, NOT_IN_QUESTION, images=count, files=record.files_key(files),
        generator=record.checkpoint(config.gpt_ckpt, config.gpt_weights),
        tokenizer=record.checkpoint(config.vq_ckpt, config.vq_weights) if config.vq_ckpt else None,
    )

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        mine = share(count, world.rank, world.size)
        workers = (config.per_proc_batch_size, config.num_workers)
        for batch in harness.visit(dataset, mine, "validation loss", *workers):
            if tokenizer is None:
                codes = batch["codes"]
            else:
                codes = tokenizer.encode(from_pixels(batch["pixels"].to(world.device)))[:, : model.num_tokens]
            yield codes, batch["label"]

    def measure() -> harness.Measured:
        losses = position_losses(model, pairs(), model.num_tokens, config.precision, world.device)
        loss = losses.mean().item()
        return {
            "loss": loss, "perplexity": math.exp(loss), "position_losses": losses.tolist(), "images": count
        }, [], None

    results = harness.answer(path, question, world, measure)
    if world.is_main:
        print(f"loss {results['loss']:.4f} nats per code, perplexity {results['perplexity']:.2f}, {count} images")
        print(f"results: {path}")
    return results


def _default_path(gpt_ckpt: str) -> Path:
    found = resolve_folder(gpt_ckpt)
    folder = found.parent if found.is_file() else found
    return (folder.parent.parent if folder.parent.name == "checkpoints" else folder) / "val_loss.json"


def main() -> None:
    settings = config.parse(ValLossConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
