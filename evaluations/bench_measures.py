"""What the bench measures of one tokenizer, group by group: cost, images kept, codes, robustness, learnability.

A figure is a value, with its value in every resample of the images where it has an interval.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tokenizer as tokenizers
from autoregressive import train
from autoregressive.config import GeneratorOptimConfig, TrainConfig
from autoregressive.generate import generate
from common.batching import in_fixed_batches
from common.config import MISSING, build, opt, part
from common.containers import open_images
from common.data import ImageFolder
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels, write_png
from common.meta import unfilled
from common.numerics import autocast, numpy_generator
from common.options import PRECISIONS, WEIGHTS, RunConfig
from evaluations import diagnose, harness, pfid, record
from evaluations.metrics import FEATURES, mmd
from evaluations.metrics.bootstrap import frechet_replicates, mean_replicates, resamples
from evaluations.metrics.features import Extractor
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall
from evaluations.reconstruction import compare
from tokenizer.model import Tokenizer
from tokenizer.released import find_tokenizer

__all__ = ["GPT", "GROUPS", "BenchConfig", "Images", "Subject"]

MEASURES = {
    "fd_efficientnet_lite2": ("fd", "kid", "mmd", "precision_recall"),
    "fd_inception": ("fd", "kid", "precision_recall"),
    "fd_dinov2_vitl14": ("fd",),
    "fd_clip_vitl14_336": ("mmd",),
}
"""Distances in the features of each network: those that its papers define, and all of them for the embedded one."""
NEIGHBOURS = 3
TIMED_RUNS, PREFIXES = 5, 16
GPT = {"name": "gpt", "width": 192, "layers": 4, "heads": 3, "num_classes": 1, "class_dropout": 0.0}
GPT_BATCH, GPT_RATE, HELD_OUT = 64, 1e-3, 5
"""Sequences a step and peak learning rate of the small GPT. Without a training folder every fifth image is held out."""

Figures = dict[str, dict[str, Any]]


@dataclass
class BenchConfig:
    """The options of `evaluations.bench`."""

    tokenizers: list[str] = opt(MISSING, "runs, checkpoints or released files: --tokenizers A B ...")
    data_path: str = opt(MISSING, "image folder; centre crops of all its images are taken")
    train_path: str | None = opt(None, "images the small GPT learns from; null = four fifths of data_path")
    out: str = opt("results/bench", "folder for records, table and page")
    num_tokens: list[int] = opt([], "token counts; [] = all tokens. A 2D tokenizer is measured with all its tokens")
    weights: str = opt("ema", "ema falls back to model where a run kept no average", WEIGHTS)
    groups: list[str] = opt(["cost", "kept", "codes", "robust", "learned"], "groups of columns to measure")
    networks: list[str] = opt(list(FEATURES), "distances to measure where the network's weights are in the cache")
    frechet: str = opt("fd_efficientnet_lite2", "distance of wrong codes and of samples: a name in networks")
    perceptual: dict[str, Any] = part(
        "evaluations.metrics:PERCEPTUAL", "perceptual distance", {"name": "perceptual_efficientnet_lite0"}
    )
    gpt_steps: int = opt(500, f"training steps of the small GPT, {GPT_BATCH} sequences each", low=1)
    resamples: int = opt(200, "bootstrap resamples of the images behind the intervals; 0 = no intervals", low=0)
    examples: int = opt(6, "images shown on the page, evenly spread over the folder", low=0)
    seed: int = opt(0, "seed of resamples, swapped codes, perturbations and the small GPT")
    precision: str = opt("none", "of the tokenizers; none = fp32, as the small GPT always is", PRECISIONS)
    batch_size: int = opt(32, "images at a time", low=1)
    device: str = opt("auto", "auto | cpu | cuda")


class Subject:
    """A tokenizer under test. Its weights are read when they are first needed.

    Raises: UserError for a continuous tokenizer, which has no codes.
    """

    def __init__(self, path: str, name: str, weights: str) -> None:
        self.path, self.name, self.weights = path, name, weights
        config, _ = find_tokenizer(path, weights)
        if config.quantizer["name"] == "kl":
            raise UserError(f"tokenizer {path!r} is continuous; the bench compares tokenizers with codes, leave it out")
        with unfilled():
            shell = Tokenizer(config)
        self.checkpoint = record.checkpoint(path, weights)
        self.image_size, self.num_tokens, self.is_1d = shell.image_size, shell.num_tokens, shell.is_1d
        self.codebook_size = shell.codebook_size
        self.parameters = sum(value.numel() for value in shell.parameters())

    def lengths(self, asked: list[int]) -> list[int]:
        """The token counts that are measured: those asked for that it decodes, or all of its tokens."""
        return sorted({k for k in asked if self.is_1d and 1 <= k <= self.num_tokens}) or [self.num_tokens]

    def load(self, device: torch.device) -> Tokenizer:
        return tokenizers.load(self.path, self.weights, device)


class Images:
    """The images, the networks that look at them, and what was last computed, shared by all measurements.

    left_out: networks whose weights are missing -> the reason.
    """

    def __init__(self, options: BenchConfig, device: torch.device) -> None:
        self.options, self.device = options, device
        self.networks: dict[str, Extractor] = {}
        self.left_out: dict[str, str] = {}
        for name in dict.fromkeys([*options.networks, options.frechet]):
            try:
                self.networks[name] = harness.load_extractor(name, device)
            except UserError as error:
                if name not in FEATURES or name == options.frechet:
                    raise
                self.left_out[name] = str(error)
        self.perceptual = build("evaluations.metrics:PERCEPTUAL", options.perceptual).to(device)
        self._folders: dict[tuple[str, int], ImageFolder] = {}
        self._originals: dict[int, dict[str, np.ndarray]] = {}
        self._tokenizer: tuple[str, Tokenizer] | None = None
        self._codes: dict[str, np.ndarray] = {}

    @cached_property
    def network_keys(self) -> dict[str, str]:
        """Hashes of all networks' weights."""
        keys = {network.name: record.weights_key(network.network) for network in self.networks.values()}
        return keys | {self.perceptual.name: record.weights_key(self.perceptual)}

    def folder(self, path: str, size: int) -> ImageFolder:
        if (path, size) not in self._folders:
            self._folders[path, size] = open_images(path, size)
        return self._folders[path, size]

    def batches(self, path: str, size: int, title: str) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Numbers (B,) and images (B,3,H,W) in [-1,1] of a folder, in order."""
        folder = self.folder(path, size)
        for batch in harness.visit(folder, range(len(folder)), title, self.options.batch_size):
            yield batch["index"].numpy(), from_pixels(batch["pixels"]).to(self.device)

    def tokenizer(self, subject: Subject) -> Tokenizer:
        if self._tokenizer is None or self._tokenizer[0] != subject.path:
            self._tokenizer, self._codes = None, {}
            self._tokenizer = subject.path, subject.load(self.device)
        return self._tokenizer[1]

    def autocast(self) -> AbstractContextManager:
        """The context in which tokenizers run."""
        return autocast(self.options.precision, self.device)

    def codes(self, subject: Subject, path: str) -> np.ndarray:
        """int32 (images, N)."""
        model = self.tokenizer(subject)
        if path not in self._codes:
            found = []
            for _, images in self.batches(path, subject.image_size, f"{subject.name}: codes"):
                with self.autocast():
                    found.append(in_fixed_batches(model.encode, images).int().cpu().numpy())
            self._codes[path] = np.concatenate(found)
        return self._codes[path]

    def originals(self, size: int) -> dict[str, np.ndarray]:
        """Network -> features (images, D) of the originals."""
        if size not in self._originals:
            found: dict[str, list[np.ndarray]] = {name: [] for name in self.networks}
            for _, images in self.batches(self.options.data_path, size, "originals"):
                for name, kept in found.items():
                    kept.append(self.features(name, images))
            self._originals[size] = {name: np.concatenate(kept) for name, kept in found.items()}
        return self._originals[size]

    def features(self, name: str, images: Tensor) -> np.ndarray:
        """float32 (B,D) of images (B,3,H,W) in [-1,1]."""
        return in_fixed_batches(lambda part: self.networks[name](part)[0], images).float().cpu().numpy()

    def decoded(self, model: Tokenizer, codes: np.ndarray | Tensor) -> Tensor:
        """float32 (B,3,H,W), unclamped, of codes (B,k)."""
        with self.autocast():
            return in_fixed_batches(model.decode, torch.as_tensor(codes).to(self.device, torch.int64)).float()

    def rounded(self, model: Tokenizer, codes: np.ndarray | Tensor) -> Tensor:
        """As `decoded`, rounded to 8 bits, in [-1,1]."""
        return from_pixels(torch.from_numpy(to_pixels(self.decoded(model, codes)))).to(self.device)


def cost(images: Images, subject: Subject, k: int, out: Path) -> Figures:
    """Parameters, FLOPs of one image, images a second in batches."""
    model, size = images.tokenizer(subject), subject.image_size
    batch = torch.zeros(images.options.batch_size, 3, size, size, device=images.device)
    found: dict[str, float] = {"parameters": subject.parameters}
    with images.autocast():
        codes = model.encode(batch)[:, :k]
        for name, work, given in (("encode", model.encode, batch), ("decode", model.decode, codes)):
            with FlopCounterMode(display=False) as counter:
                work(given[:1])
            found[f"flops_{name}"] = counter.get_total_flops()
            seconds = statistics.median(_seconds(work, given) for _ in range(TIMED_RUNS))
            found[f"images_per_s_{name}"] = len(given) / seconds
    return {name: {"value": value} for name, value in found.items()}


def _seconds(work: Callable[[Tensor], Tensor], given: Tensor) -> float:
    """Of one call; reading a value waits for the device."""
    start = time.perf_counter()
    work(given).flatten()[-1].item()
    return time.perf_counter() - start


@torch.inference_mode()
def kept(images: Images, subject: Subject, k: int, out: Path) -> Figures:
    """Reconstructions from k tokens against the originals; and from codes half of which are another image's."""
    options, model = images.options, images.tokenizer(subject)
    originals = images.originals(subject.image_size)
    codes = images.codes(subject, options.data_path)[:, :k]
    partners = np.roll(numpy_generator(options.seed, "partners").permutation(len(codes)), 1)
    shown = set(harness.spread(len(codes), min(options.examples, len(codes))))
    values: dict[str, list[float]] = {}
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*images.networks, "swapped")}
    for indices, batch in images.batches(options.data_path, subject.image_size, f"{subject.name}, {k} tokens"):
        pixels, rounded, measured = compare(images.decoded(model, codes[indices]), batch, images.perceptual)
        del measured["ssim_data_range_2"]
        for name, each in measured.items():
            values.setdefault(name, []).extend(each.tolist())
        for name in images.networks:
            found[name].append(images.features(name, rounded))
        foreign = np.stack([numpy_generator(options.seed, "swap", int(i)).random(k) < 0.5 for i in indices])
        swapped = images.rounded(model, np.where(foreign, codes[partners[indices]], codes[indices]))
        found["swapped"].append(images.features(options.frechet, swapped))
        for index, original, image in zip(indices.tolist(), to_pixels(batch), pixels, strict=True):
            if index in shown:
                write_png(out / f"{index:06d}.png", image)
                write_png(out / f"{index:06d}_original.png", original)
    counts = resamples(len(codes), options.resamples, options.seed)
    figures = {name: _mean(each, counts) for name, each in values.items()}
    for name in images.networks:
        pairs = originals[name], np.concatenate(found[name])
        figures |= _distances(MEASURES[name], images.networks[name].name, *pairs, counts, images.device)
    pairs = originals[options.frechet], np.concatenate(found["swapped"])
    return figures | {f"swap_{options.frechet}": _frechet(*pairs, counts, counts)}


def codes(images: Images, subject: Subject, k: int, out: Path) -> Figures:
    """Use, entropy and gain of every position; writes the files of `evaluations.diagnose`."""
    options = images.options
    every = max(1, subject.num_tokens // PREFIXES)
    told = diagnose.run(diagnose.DiagnoseConfig(
        subject.path, subject.weights, options.data_path, out=str(out), every=every, perceptual={},
        batch_size=options.batch_size, precision=options.precision, device=str(images.device),
    ))  # fmt: skip
    figures = {name: {"value": value} for name, value in told["summary"].items()}
    return figures | {"prefixes": told["prefixes"], "entropy": told["positions"]["entropy"]}


def robust(images: Images, subject: Subject, k: int, out: Path) -> Figures:
    """pFID, or the same on the features of another network; writes the file of `evaluations.pfid`."""
    options = images.options
    told = pfid.run(pfid.PfidConfig(
        vq_ckpt=subject.path, weights=subject.weights, data_path=options.data_path, sample_dir=str(out),
        num_tokens=[k] if subject.is_1d else [], frechet=options.frechet, seed=options.seed,
        per_proc_batch_size=options.batch_size, precision=options.precision, device=str(images.device),
    ))  # fmt: skip
    return {name: {"value": value} for name, value in told["tokens"][str(k)]["mean"].items()}


def learned(images: Images, subject: Subject, k: int, out: Path) -> Figures:
    """How well a small GPT, trained for a fixed budget, predicts the codes of held-out images; and its samples."""
    options, device, model = images.options, images.device, images.tokenizer(subject)
    own = images.codes(subject, options.data_path)[:, :k]
    if options.train_path:
        seen, held_out = images.codes(subject, options.train_path)[:, :k], own
    else:
        last = np.arange(len(own)) % HELD_OUT == HELD_OUT - 1
        seen, held_out = own[~last], own[last]
    gpt = _train(options, device, seen, subject.codebook_size)
    labels = torch.zeros(options.batch_size, dtype=torch.int64, device=device)
    parts = torch.as_tensor(held_out).long().split(options.batch_size)
    with torch.inference_mode():
        losses = train.code_losses(gpt, ((part, labels[: len(part)]) for part in parts), "none", device)
        nats = torch.cat([each.sum(dim=1) for each in losses]).cpu().numpy()
        samples = []
        for part in torch.arange(len(own), device=device).split(options.batch_size):
            drawn = generate(gpt, labels[: len(part)], k, seed=options.seed, image_ids=part)
            samples.append(images.features(options.frechet, images.rounded(model, drawn)))
    counts, other = (
        resamples(images, options.resamples, options.seed, stream)
        for images, stream in ((len(own), "images"), (len(own), "samples"))
    )
    own_counts = resamples(len(nats), options.resamples, options.seed, "held out")
    pairs = images.originals(subject.image_size)[options.frechet], np.concatenate(samples)
    return {"nats": _mean(nats, own_counts), f"samples_{options.frechet}": _frechet(*pairs, counts, other)}


def _train(options: BenchConfig, device: torch.device, codes: np.ndarray, codebook_size: int) -> torch.nn.Module:
    """The small GPT after its budget of steps on codes (N,k), without labels."""
    stated = {**GPT, "codebook_size": codebook_size, "num_tokens": codes.shape[1]}
    run = RunConfig(
        out="", steps=options.gpt_steps, seed=options.seed, precision="none", parallel="none", device=str(device)
    )
    rates = GeneratorOptimConfig(lr=GPT_RATE, warmup=options.gpt_steps // 10, schedule="cosine")
    trainee = train.without_data(TrainConfig(model=stated, run=run, optim=rates))[0](World(0, 1, device))
    for step in range(options.gpt_steps):
        chosen = numpy_generator(options.seed, "batch", step).integers(len(codes), size=GPT_BATCH)
        given = torch.as_tensor(codes[chosen]).to(device, torch.int64)
        trainee.step({"codes": given, "label": torch.zeros(GPT_BATCH, dtype=torch.int64, device=device)}, step)
    return trainee.model.eval()


def _mean(values: list[float] | np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    values = np.asarray(values, np.float64)
    return {"value": float(values.mean()), "replicates": mean_replicates(values, counts).tolist()}


def _frechet(x: np.ndarray, y: np.ndarray, counts: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    return {
        "value": frechet_distance(fit(x), fit(y)), "replicates": frechet_replicates(x, y, counts, other).tolist()
    }


def _distances(
    wanted: tuple[str, ...], network: str, x: np.ndarray, y: np.ndarray, counts: np.ndarray, device: torch.device
) -> Figures:
    """Distances of two sets of features (N,D), image i of one belonging to image i of the other."""
    found: Figures = {}
    if "fd" in wanted:
        found["fd"] = _frechet(x, y, counts, counts)
    if "kid" in wanted:
        repeated = mmd.kid_replicates(x, y, counts, device)
        found["kid"] = {"value": mmd.kid(x, y, device=device), "replicates": repeated.tolist()}
    if "mmd" in wanted:
        repeated = mmd.cmmd_replicates(x, y, counts, device)
        found["mmd"] = {"value": mmd.cmmd(x, y, device), "replicates": repeated.tolist()}
    if "precision_recall" in wanted and len(x) > NEIGHBOURS:
        both = precision_recall(x, y, NEIGHBOURS, device=device)
        found |= {"precision": {"value": both.precision}, "recall": {"value": both.recall}}
    return {f"{name}_{network}": figure for name, figure in found.items()}


GROUPS = {"cost": cost, "kept": kept, "codes": codes, "robust": robust, "learned": learned}
"""Group -> function of (images, tokenizer, token count, folder for files) that returns its figures."""
