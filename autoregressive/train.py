"""Train a class-conditional generator: `python -m autoregressive.train --config configs/gpt/GPT-B.yaml ...`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import tokenizer as tokenizers
from autoregressive.config import TrainConfig
from autoregressive.cross_entropy import cross_entropy
from autoregressive.paper_flags import TRAIN_FLAGS
from autoregressive.regression import RegressedGenerator
from common import checkpoint, config, dist, loop, numerics, optim, parallel
from common.codes import CodeStore
from common.config import build
from common.containers import open_images
from common.data import batches, share, stream
from common.dist import World
from common.errors import UserError
from common.estimate import measure, shortage
from common.images import from_pixels
from common.paper_flags import joined
from common.token_lines import TokenLines
from common.trainee import Trainee
from tokenizer.frozen_codes import codes_fingerprint
from tokenizer.model import Tokenizer


@torch.no_grad()
def code_losses(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str, device: torch.device
) -> Iterator[Tensor]:
    """Cross-entropy of every code, in nats: float64 (B,num_tokens) for every batch of codes int64 (B,num_tokens) and
    labels int64 (B,)."""
    for codes, labels in batches:
        codes, labels = codes.to(device), labels.to(device)
        with numerics.autocast(precision, device):
            logits = model(codes, labels)
        yield cross_entropy(logits, codes).double()


def position_losses(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_tokens: int, precision: str, device: torch.device
) -> Tensor:
    """Cross-entropy of every code position, averaged over the images of all ranks: float64 (num_tokens,), in nats.

    `batches`: this rank's (codes int64 (B,num_tokens), labels int64 (B,)), every image once over all ranks. Sums and
    counts are added up before the one division, so neither batch sizes nor shares of different length weigh in.
    """
    totals = torch.zeros(num_tokens + 1, dtype=torch.float64, device=device)  # the last entry counts images
    for losses in code_losses(model, batches, precision, device):
        totals[:-1] += losses.sum(dim=0)
        totals[-1] += len(losses)
    totals = torch.stack(dist.all_gather(totals)).sum(dim=0)
    return totals[:-1] / totals[-1]


class Source:
    """The training codes: a store, or images and the tokenizer that encodes them in every step."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        """Raises: UserError unless exactly one of data.codes and data.root is given, data.root with a tokenizer; and
        when the codes are not those of data.vq_ckpt."""
        data, seed = config.data, config.run.seed
        if bool(data.codes) == bool(data.root):
            raise UserError("give either a code store (--code-path) or an image folder (--data-path with --vq-ckpt)")
        self.device = world.device
        self.tokenizer: Tokenizer | None = None
        self.dataset: Dataset[dict[str, Any]]
        self.codes_of: str | None = None
        if data.vq_ckpt:
            named = (data.tok_config, data.image_size)
            tokenizer = tokenizers.load(data.vq_ckpt, data.weights, world.device, *named)
            self.codes_of = codes_fingerprint(tokenizer)
        if data.codes:
            self.dataset = open_codes(data.codes, config.model, seed)
            self.num_tokens, self.codebook_size = self.dataset.num_tokens, self.dataset.codebook_size
            recorded = self.dataset.meta.get("codes_of")
            if None not in (recorded, self.codes_of) and recorded != self.codes_of:
                raise UserError(f"{data.codes!r} are not codes of {data.vq_ckpt!r}; leave --vq-ckpt out")
            self.codes_of = recorded or self.codes_of
        else:
            if not data.vq_ckpt:
                raise UserError("images need a tokenizer to be encoded by; give --vq-ckpt RUN (data.vq_ckpt)")
            self.tokenizer = tokenizer
            self.num_tokens = config.model["num_tokens"] or tokenizer.num_tokens
            self.codebook_size = tokenizer.codebook_size
            self.dataset = open_images(data.root, tokenizer.image_size, data.crop, data.flip, seed, data.bad_images)
        self.classes = self.dataset.classes

    def provenance(self) -> dict[str, Any]:
        """What checkpoints record of the data; see `common.provenance`."""
        return {"classes": self.classes, "codes_of": self.codes_of, "data": self.dataset.facts()}

    def codes(self, batch: dict[str, Tensor]) -> Tensor:
        """int64 (B, num_tokens) of a batch, on the device."""
        if "codes" in batch:
            return batch["codes"].to(self.device)
        return self.tokenizer.encode(from_pixels(batch["pixels"].to(self.device)))[:, : self.num_tokens]

    def complete(self, model: dict[str, Any]) -> dict[str, Any]:
        """The generator's config, completed with the numbers that the data determine.

        Raises: UserError if the config states other numbers.
        """
        known = {"codebook_size": self.codebook_size, "num_tokens": self.num_tokens, "num_classes": len(self.classes)}
        for key, value in known.items():
            if model[key] not in (None, value) and not (key == "num_classes" and model[key] > value):
                raise UserError(f"model.{key} is {model[key]}, the data have {value}; leave it out or change the data")
        return {**model, **{key: model[key] or value for key, value in known.items()}}


def open_codes(path: str, model: Mapping[str, Any], seed: int = 0) -> CodeStore | TokenLines:
    """A code store, or the `.jsonl` that RobusTok and RAR release."""
    if path.endswith(".jsonl"):
        return TokenLines(path, model["codebook_size"], model["num_tokens"])
    return CodeStore(path, model["num_tokens"], seed)


class GeneratorTrainee(Trainee):
    """A generator that learns to predict codes."""

    def __init__(self, config: TrainConfig, world: World, source: Source) -> None:
        super().__init__(config.run, config.optim, world)
        self.config, self.source = config, source
        self.model = build("autoregressive.models:GENERATORS", config.model)
        self.regressed = self._regressed() if config.regression else None
        self.start(self.model, self.regressed, config.ema_decay)
        self.held_out = self._held_out() if config.run.validate_every else None

    def make_optimizer(self) -> torch.optim.Optimizer | optim.MuonAdamW:
        rate = self.config.optim.muon_lr
        if rate is None:
            return super().make_optimizer()
        if self.run.parallel == "fsdp":
            raise UserError("optim.muon_lr needs whole matrices; use run.parallel=ddp or optim.muon_lr=null")
        return optim.MuonAdamW(self.trained, self.schedule, rate)

    def _regressed(self) -> RegressedGenerator:
        data = self.config.data
        if not data.vq_ckpt:
            raise UserError("regression needs the tokenizer's code vectors; give --vq-ckpt RUN, or set regression=null")
        tokenizer = self.source.tokenizer or tokenizers.load(
            data.vq_ckpt, data.weights, self.world.device, data.tok_config, data.image_size
        )
        codes = torch.arange(self.model.codebook_size, device=self.world.device)
        codebook = tokenizer.quantizer.lookup(codes)
        return RegressedGenerator(self.model, self.config.regression, codebook)

    def _held_out(self) -> CodeStore:
        if not self.config.data.val_codes:
            raise UserError("run.validate_every is set but data.val_codes is not; give --val-code-path STORE")
        store = CodeStore(self.config.data.val_codes, self.source.num_tokens, classes=self.source.classes)
        known = (store.meta.get("codes_of"), self.source.codes_of)
        if store.codebook_size != self.source.codebook_size or (None not in known and known[0] != known[1]):
            raise UserError("data.val_codes are codes of another tokenizer than the training codes; extract them anew")
        return store

    def inputs(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, ...]:
        codes = self.source.codes(batch)
        return codes, batch["label"], *self._draw(codes, step)

    def losses(
        self, step: int, number: int, codes: Tensor, labels: Tensor, drop: Tensor, fed: Tensor, *orders: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with numerics.autocast(self.config.run.precision, self.world.device):
            if self.regressed:
                logits, others = self.wrapped(fed, labels, drop, codes)
            else:
                logits, others = self.wrapped(fed, labels, drop, *orders), {}
        losses = {"train/loss": cross_entropy(logits, codes).mean()}
        losses |= {f"train/loss_{name}": value for name, value in others.items()}
        return sum(losses.values()), losses

    def _draw(self, codes: Tensor, step: int) -> tuple[Tensor, ...]:
        """Labels to drop, bool (B,), codes to feed, int64 (B,N), and for generators that permute them orders (B,N).

        On the device, from the step and an image's place in the global batch, so the number of ranks does not matter.
        """
        local, num_tokens = codes.shape
        rows = torch.arange(local, device=codes.device) + local * self.world.rank

        def bits(stream: str, columns: int) -> Tensor:
            return numerics.random_bits(numerics.derive_seed(self.run.seed, "step", step, stream), rows, columns)

        drop = numerics.uniform(bits("class", 1)[:, 0]) < self.model.class_dropout
        fed = codes
        if self.config.input_noise:
            replaced = numerics.uniform(bits("replaced", num_tokens)) < self.config.input_noise
            fed = torch.where(replaced, bits("random", num_tokens) % self.model.codebook_size, codes)
        drawn = (drop, fed)
        if hasattr(self.model, "draw_orders"):
            drawn += (self.model.draw_orders(bits("order", num_tokens + 1), step / self.run.steps),)
        return drawn

    def frozen(self) -> list[nn.Module]:
        """The tokenizer, when images are tokenized in every step."""
        return [self.source.tokenizer] if self.source.tokenizer else []

    def weights(self) -> dict[str, dict[str, Tensor]]:
        heads = {"regression": self.regressed.heads.state_dict()} if self.regressed else {}
        return super().weights() | heads

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        super().load(weights, state)
        if self.regressed:
            checkpoint.load_into(self.regressed.heads, weights("regression"), "regression")

    def validate(self) -> dict[str, float]:
        """Mean cross-entropy per code on the held-out store, in nats, with labels: `val/loss` of the trained weights,
        which jobs use by default, and `val/loss_ema` of their average, if there is one."""
        found = {"val/loss": self._held_out_loss(self.model.eval(), self.wrapped)}
        if self.ema:
            found["val/loss_ema"] = self._held_out_loss(self.ema.module, self.ema.module)
        self.wrapped.train()
        return found

    @torch.no_grad()
    def _held_out_loss(self, model: nn.Module, placed: nn.Module) -> float:
        mine = share(len(self.held_out), self.world.rank, self.world.size)
        size = max(1, self.config.data.batch_size // self.world.size)
        pairs = ((batch["codes"], batch["label"]) for batch in batches(self.held_out, mine, size))
        num_tokens, precision = self.source.num_tokens, self.run.precision
        with parallel.gathered(placed, precision, self.world.device):
            return position_losses(model, pairs, num_tokens, precision, self.world.device).mean().item()


def run(config: TrainConfig) -> None:
    """The job behind `python -m autoregressive.train`."""
    with loop.job(config.run) as world:
        source = Source(config, world)
        config = dataclasses.replace(config, model=source.complete(config.model))
        warning = shortage(without_data(config), config.data.batch_size, config.run, world)
        trainee = GeneratorTrainee(config, world, source)
        data = config.data

        def loader(start: int, stop: int) -> Iterable[dict[str, Tensor]]:
            order = (data.batch_size, world.rank, world.size, config.run.seed, start, stop)
            return stream(source.dataset, *order, workers=data.workers)

        described = dataclasses.asdict(config)
        loop.run(
            trainee, loader, config.run, config.log, world, described, source.provenance(), source.dataset.name,
            warning,
        )


class _NoData:
    """Stands for a code store where only the cost of a step is measured."""

    tokenizer = None

    def codes(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["codes"]


def without_data(config: TrainConfig) -> tuple[Callable[[World], GeneratorTrainee], Callable[[int], dict[str, Tensor]]]:
    """A trainer without regression or validation, and random batches of extracted codes, to measure what a step costs.

    Building it raises UserError when the config leaves a number to the data that the cost depends on.
    """
    run, model = dataclasses.replace(config.run, validate_every=0), config.model
    config = dataclasses.replace(config, run=run, regression=None)
    return (
        lambda world: GeneratorTrainee(config, world, _NoData()),
        lambda count: {
            "codes": torch.randint(0, model["codebook_size"], (count, model["num_tokens"])),
            "label": torch.randint(0, model["num_classes"], (count,)),
        },
    )


def estimate(config: TrainConfig) -> None:
    """Print what a step on extracted codes costs."""
    measured = measure(*without_data(config), config.data.batch_size, config.run, config.estimate)
    print("\n".join(measured.lines(config.estimate.tflops)))


def main() -> None:
    settings = config.parse(TrainConfig, joined(sys.argv[1:], "results/gpt"), aliases=TRAIN_FLAGS, about=__doc__)
    (estimate if settings.estimate else run)(settings)


if __name__ == "__main__":
    config.main(main)
