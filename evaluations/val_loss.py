"""Validation loss of a generator: the mean cross-entropy of held-out images' codes, in nats.

    bash scripts/val_loss_c2i.sh --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR

encodes centre crops with the tokenizer (or reads --code-path, a code store of held-out images), shows every class and
weighs every code alike. Writes `val_loss.json` into the generator's run: loss, perplexity, loss per position.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

import autoregressive
import tokenizer as tokenizers
from autoregressive.paper_flags import COMMON_FLAGS
from autoregressive.released import class_names, load_compatible
from autoregressive.train import position_losses
from common import config, dist
from common.checkpoint import resolve_folder
from common.codes import CodeStore
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder, batches, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels
from common.paper_flags import half
from common.provenance import read_provenance
from evaluations import record


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


NOT_IN_QUESTION = ("out", "device", "per_proc_batch_size", "num_workers", "gpt_model", "tok_config", "image_size")
"""Options that do not change the figures, or must agree with the checkpoints anyway."""


def run(config: ValLossConfig) -> dict[str, Any]:
    """Measure, write and return the record; an earlier one is reused only for exactly the same question."""
    if bool(config.data_path) == bool(config.code_path):
        raise UserError("give either images (--data-path, with --vq-ckpt) or a code store (--code-path)")
    if config.data_path and not config.vq_ckpt:
        raise UserError("images need a tokenizer to be encoded by; give --vq-ckpt RUN")
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: ValLossConfig, world: World) -> dict[str, Any]:
    path = Path(config.out) if config.out else _default_path(config.gpt_ckpt)
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
        tokenizer = tokenizers.load(config.vq_ckpt, config.vq_weights, world.device, *named)
        model = load_compatible(config.gpt_ckpt, config.gpt_weights, world.device, tokenizer, config.gpt_model)
        names = class_names(config.gpt_ckpt, model.num_classes)
        dataset = open_images(config.data_path, tokenizer.image_size, classes=names)
    count = min(len(dataset), config.num_images or len(dataset))
    question = _question(config, dataset, count)
    earlier = dist.gather_objects(record.read_current(path, question))[0]
    if earlier is not None:
        if world.is_main:
            print(f"{path}: this was measured before; delete the file to measure again")
        return earlier

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        mine = share(count, world.rank, world.size)
        bar = tqdm(total=len(mine), desc="validation loss", unit="image", disable=not world.is_main)
        for batch in batches(dataset, mine, config.per_proc_batch_size, config.num_workers):
            if tokenizer is None:
                codes = batch["codes"]
            else:
                codes = tokenizer.encode(from_pixels(batch["pixels"].to(world.device)))[:, : model.num_tokens]
            yield codes, batch["label"]
            bar.update(len(codes))
        bar.close()

    losses = position_losses(model, pairs(), model.num_tokens, config.precision, world.device)
    loss = losses.mean().item()
    results = {"loss": loss, "perplexity": math.exp(loss), "position_losses": losses.tolist(), "images": count}
    if world.is_main:
        results = record.write(path, question, results)
        print(f"loss {loss:.4f} nats per code, perplexity {math.exp(loss):.2f}, {count} images\nresults: {path}")
    dist.barrier()
    return results


def _default_path(gpt_ckpt: str) -> Path:
    found = resolve_folder(gpt_ckpt)
    folder = found.parent if found.is_file() else found
    return (folder.parent.parent if folder.parent.name == "checkpoints" else folder) / "val_loss.json"


def _question(config: ValLossConfig, dataset: ImageFolder | CodeStore, count: int) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_IN_QUESTION}
    files = [Path(config.code_path) / "codes.npy"] if config.code_path else dataset.files(count)
    return {
        "job": "val_loss", **asked, "images": count, "files": record.files_key(files),
        "generator": record.checkpoint(config.gpt_ckpt),
        "tokenizer": record.checkpoint(config.vq_ckpt) if config.vq_ckpt else None,
    }


def main() -> None:
    settings = config.parse(ValLossConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
