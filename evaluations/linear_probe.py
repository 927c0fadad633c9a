"""Linear probe: top-1 accuracy of one linear layer on frozen features of a tokenizer or a generator.

    bash scripts/train_lin_probe.sh --vq-ckpt RUN --data-path DIR --val-path DIR --out OUT
    bash scripts/train_lin_probe_gpt.sh --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR --val-path DIR --out OUT

trains the layer on features averaged over an image's tokens, then writes its accuracy on the validation images to
`<out>/results.json`. After an interruption the same command resumes; --eval measures a probe without training it.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.paper_flags import COMMON_FLAGS
from autoregressive.released import load_compatible
from common import checkpoint, config, dist, loop, numerics, weight_choice
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder, share, stream
from common.dist import World
from common.errors import UserError
from common.images import from_pixels
from common.options import IMAGE_SIZE, PRECISIONS, WEIGHTS, LogConfig, OptimConfig, RunConfig
from common.paper_flags import half, joined, switch
from common.provenance import read_provenance
from common.trainee import Trainee
from evaluations import harness, record
from evaluations.probe_features import Features, generator_features, tokenizer_features


@dataclass
class ProbeConfig:
    """Defaults are the papers': 90 epochs, 10 of them warm-up, LARS at 0.1 per 256 images."""

    out: str = opt(MISSING, "result folder; the same command again resumes from it")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run")
    vq_weights: str = opt("ema", "tokenizer weights", WEIGHTS)
    tok_config: str | None = opt(None, "tokenizer YAML; must agree with the checkpoint's own config")
    image_size: int | None = opt(None, IMAGE_SIZE)
    gpt_ckpt: str | None = opt(None, "probe the features of this generator; null = those of the tokenizer")
    gpt_weights: str = opt("model", "generator weights", WEIGHTS)
    gpt_model: str | None = opt(None, "generator size; must agree with the checkpoint")
    n_layer: int | None = opt(None, "generator block whose output is probed, 1-based; null = the middle one")
    num_code: int | None = opt(None, "tokens read per image; null = all")
    features: str = opt(
        "encoder", "of a tokenizer: encoder (after its last norm) | fix_dim (projected) | decoder (semantic depth)"
    )
    data_path: str | None = opt(None, "image folder to train the probe on; not needed with eval")
    val_path: str = opt(MISSING, "image folder of the same classes for the accuracy; centre crops are taken")
    crop: str = opt("random", "training crops: random (short side in [size, size/0.8], random square) | center")
    flip: bool = opt(True, "mirror half of the training images")
    epochs: int = opt(90, "passes over the training images")
    warmup_epochs: int = opt(10, "of these, epochs of linear warm-up from 0")
    blr: float = opt(0.1, "learning rate per 256 images of the global batch")
    lr: float | None = opt(None, "learning rate independent of the batch size, instead of blr")
    min_lr: float = opt(0.0, "final learning rate of the cosine schedule")
    weight_decay: float = opt(0.0, "weight decay of the linear layer's matrix")
    per_proc_batch_size: int = opt(128, "images at once, per process")
    num_workers: int = opt(0, "loader processes per rank")
    seed: int = opt(0, "seed of the linear layer, the data order and the crops")
    precision: str = opt("none", "of the frozen models; none = fp32, as the probe always is", PRECISIONS)
    ckpt_epoch: int = opt(10, "epochs between checkpoints of the probe")
    eval: bool = opt(False, "measure lin_probe_ckpt (or the probe in out) without training")
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
    "dist-eval": switch(),  # the validation images are always distributed over the ranks
}


class Lars(torch.optim.Optimizer):
    """Momentum SGD whose updates of matrices are scaled by `trust` * weight norm / gradient norm; vectors are not.

    Source: You et al., "Large batch training of convolutional networks" (arXiv 1708.03888), as MAE's and GigaTok's
    linear probes use it: momentum 0.9, trust 0.001.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                update = value.grad
                if value.dim() > 1:
                    update = update + group["weight_decay"] * value
                    size, change = value.norm(), update.norm()
                    scale = group["trust"] * size / change
                    update = update * torch.where((size > 0) & (change > 0), scale, torch.ones_like(size))
                momentum = self.state[value].setdefault("momentum", torch.zeros_like(value))
                momentum.mul_(group["momentum"]).add_(update)
                value.sub_(momentum, alpha=group["lr"])


class Probe(nn.Module):
    """Features (B,D) -> logits (B,K): batch normalisation, then one linear layer. Source: MAE's linear probe."""

    def __init__(self, width: int, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        generator = numerics.torch_generator(seed, "weights")
        nn.init.trunc_normal_(self.linear.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


class ProbeTrainee(Trainee):
    """Trains the probe on the features of the global batch: every rank gathers them and applies the same update.

    The normalisation therefore sees the global batch, and the result does not depend on the number of ranks.
    """

    def __init__(
        self, config: ProbeConfig, run: RunConfig, schedule: OptimConfig, world: World, features: Features, classes: int
    ) -> None:
        super().__init__(run, schedule, world)
        self.precision, self.features = config.precision, features
        self.start(Probe(features.width, classes, config.seed))

    def wrap(self, module: nn.Module) -> nn.Module:
        return module.to(self.world.device)

    def make_optimizer(self) -> Lars:
        return Lars(self.model.parameters(), self.schedule.lr, self.schedule.weight_decay)

    def inputs(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, ...]:
        mine = read(self.features, batch["pixels"], self.precision, self.world.device)
        return torch.cat(dist.all_gather(mine)), torch.cat(dist.all_gather(batch["label"]))

    def losses(self, step: int, number: int, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.wrapped(features)
        loss = F.cross_entropy(logits, labels)
        return loss, {"train/loss": loss, "train/accuracy": (logits.argmax(dim=1) == labels).float().mean()}


@torch.no_grad()
def read(features: Features, pixels: Tensor, precision: str, device: torch.device) -> Tensor:
    """uint8 (B,H,W,3) -> float32 features (B,width)."""
    with numerics.autocast(precision, device):
        return features.read(from_pixels(pixels.to(device))).float()


@torch.no_grad()
def accuracy(
    probe: Probe, features: Features, data: ImageFolder, world: World, precision: str, batch_size: int, workers: int = 0
) -> dict[str, int]:
    """Counts of correctly classified images and of all images, summed over the ranks."""
    probe.eval()
    sums = torch.zeros(2, dtype=torch.int64, device=world.device)
    mine = share(len(data), world.rank, world.size)
    for batch in harness.visit(data, mine, "probe accuracy", batch_size, workers):
        right = probe(read(features, batch["pixels"], precision, world.device)).argmax(dim=1).cpu() == batch["label"]
        sums += torch.tensor([int(right.sum()), len(right)], device=world.device)
    correct, images = torch.stack(dist.all_gather(sums)).sum(dim=0).tolist()
    return {"correct": correct, "images": images}


NOT_IN_QUESTION = {
    "out": "where results go", "log": "what is printed", "device": "equal up to rounding", "num_workers": "speed",
    "gpt_model": "must agree with the checkpoint", "tok_config": "must agree with the checkpoint",
    "eval": "how the probe was found",
    **dict.fromkeys(
        ("data_path", "crop", "flip", "epochs", "warmup_epochs", "blr", "lr", "min_lr", "weight_decay",
         "per_proc_batch_size", "seed", "ckpt_epoch", "lin_probe_ckpt"),
        "changes the probe, whose hash is in the question",
    ),
}  # fmt: skip
"""Options that do not change the accuracy of a given probe, with the reason."""

VERSION = 2


def run(config: ProbeConfig) -> dict[str, Any]:
    """Train (or resume, or with `eval` only load) a probe and measure it; returns what `<out>/results.json` says."""
    if not config.data_path and not config.eval:
        raise UserError("a probe needs images to train on; give --data-path DIR, or --eval to measure a trained probe")
    if config.lin_probe_ckpt and not config.eval:
        raise UserError("--lin-probe-ckpt is the probe that --eval measures; add --eval or leave it out")
    with dist.joined(config.device) as world:
        named = (config.tok_config, config.image_size)
        tokenizer = harness.load_tokenizer(config.vq_ckpt, config.vq_weights, world, *named, flag="vq-weights")
        if config.gpt_ckpt:
            weight_choice.announce("generator", config.gpt_ckpt, config.gpt_weights, "gpt-weights")
            model = load_compatible(config.gpt_ckpt, config.gpt_weights, world.device, tokenizer, config.gpt_model)
            features = generator_features(model, tokenizer, config.n_layer, config.num_code)
        else:
            features = tokenizer_features(tokenizer, config.features, config.num_code)
        return train_and_measure(config, world, features, tokenizer.image_size)


def train_and_measure(config: ProbeConfig, world: World, features: Features, image_size: int) -> dict[str, Any]:
    """The job for given features."""
    probed = _probed(config)
    if config.eval:
        folder = checkpoint.resolve_folder(config.lin_probe_ckpt or config.out)
    else:
        folder = _train(config, world, features, image_size, probed)
    classes = read_provenance(folder)["classes"]
    data = open_images(config.val_path, image_size, classes=classes)
    question = harness.question(
        config, "linear_probe", VERSION, NOT_IN_QUESTION, files=record.files_key(data.files(len(data))),
        probe=record.checkpoint(folder, "model"), tokenizer=record.checkpoint(config.vq_ckpt, config.vq_weights),
        generator=record.checkpoint(config.gpt_ckpt, config.gpt_weights) if config.gpt_ckpt else None,
    )

    def measure() -> harness.Measured:
        probe = Probe(features.width, len(classes)).to(world.device)
        checkpoint.load_into(probe, checkpoint.read_weights(folder, "model"), str(folder))
        batches = (config.precision, config.per_proc_batch_size, config.num_workers)
        sums = accuracy(probe, features, data, world, *batches)
        return {"accuracy": sums["correct"] / sums["images"], **sums}, [], None

    path = Path(config.out) / "results.json"
    results = harness.answer(path, question, world, measure)
    if world.is_main:
        print(f"top-1 accuracy {results['accuracy']:.4f} on {results['images']} images\nresults: {path}")
    return results


def _train(config: ProbeConfig, world: World, features: Features, image_size: int, probed: dict[str, Any]) -> Path:
    data = open_images(config.data_path, image_size, config.crop, config.flip, config.seed)
    batch_size = config.per_proc_batch_size * world.size
    steps = max(1, math.ceil(config.epochs * len(data) / batch_size))
    schedule = OptimConfig(
        lr=config.lr or config.blr * batch_size / 256, weight_decay=config.weight_decay, schedule="cosine",
        warmup=int(config.warmup_epochs * len(data) / batch_size), warmup_lr=0.0, end_lr=config.min_lr,
        max_grad_norm=0.0,
    )  # fmt: skip
    every = max(1, math.ceil(config.ckpt_epoch * len(data) / batch_size))
    run = RunConfig(
        out=config.out, steps=steps, seed=config.seed, device=config.device, checkpoint_every=every, milestone_every=0
    )
    trainee = ProbeTrainee(config, run, schedule, world, features, len(data.classes))

    def loader(start: int, stop: int) -> Iterable[dict[str, Tensor]]:
        return stream(data, batch_size, world.rank, world.size, config.seed, start, stop, config.num_workers)

    about = {**dataclasses.asdict(config), "model": {**probed, "classes": len(data.classes)}}
    meta = {"classes": data.classes, "data": data.facts()}
    return loop.run(trainee, loader, run, config.log, world, about, meta, data.name)


def _probed(config: ProbeConfig) -> dict[str, Any]:
    """Identity of the features: a probe of other features is not resumed."""
    tokenizer = record.checkpoint(config.vq_ckpt, config.vq_weights)["weights_sha256"]
    asked = {"num_code": config.num_code, "tokenizer": tokenizer}
    if config.gpt_ckpt:
        generator = record.checkpoint(config.gpt_ckpt, config.gpt_weights)["weights_sha256"]
        weights = {"weights": config.gpt_weights, "tokenizer_weights": config.vq_weights}
        return asked | {"generator": generator, **weights, "layer": config.n_layer}
    return asked | {"features": config.features, "weights": config.vq_weights}


def main() -> None:
    settings = config.parse(ProbeConfig, joined(sys.argv[1:], "results/lin_probe"), aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
