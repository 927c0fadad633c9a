"""Sample a generator and compare the samples with drawings it was trained on and drawings it never saw.

    python -m studies.drawings --gpt-ckpt RUN --vq-ckpt RUN --train-path DIR --val-path DIR --out DIR

One sample per training image, of that image's class, so that samples and training images have the same classes in the
same shares. Writes `<out>/results.json` and `<out>/pictures.npz` (what a report shows).

Distances are Frechet distances to the held-out images in the features of two embedded networks. Beside the samples they
are measured for the training images themselves and for their reconstructions from a prefix of their tokens. With
--lengths they are also measured for prefixes of the samples' codes, which are what a shorter sampling run would draw.

A sample is a near copy when it is nearer to a training image than 99% of the held-out images are. All are decoded from
their codes, because that is what a generator would draw that learned them by heart. Mirrored training images count;
distances are root mean squared differences at a quarter of the resolution.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from autoregressive.config import SampleConfig, Sampling
from autoregressive.guidance import Guidance
from autoregressive.sample import ImageSampler
from common import config, dist
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder, batches
from common.errors import UserError
from common.images import from_pixels, to_pixels
from common.networks.efficientnet_lite import EfficientNetLite
from evaluations import record
from evaluations.harness import spread
from evaluations.metrics import linear_classifier
from evaluations.metrics.frechet import fit, frechet_distance

NETWORKS = {"efficientnet_lite2": "lite2", "efficientnet_lite0": "lite0"}
"""Name in the results -> embedded network; the first one's features also serve the class classifier."""
BATCH, PRECISION = 64, "bf16"
COPY_QUANTILE = 0.01
STRIPS = 4
"""Held-out images shown token by token."""


@dataclass
class DrawingsConfig:
    gpt_ckpt: str = opt(MISSING, "generator checkpoint or run")
    vq_ckpt: str = opt(MISSING, "tokenizer checkpoint or run")
    train_path: str = opt(MISSING, "image folder that both were trained on")
    val_path: str = opt(MISSING, "held-out image folder of the same classes")
    out: str = opt(MISSING, "result folder")
    cfg_scale: float = opt(4.0, "guidance scale of the samples")
    scales: list[float] = opt([1.0, 1.5, 2.5, 4.0], "guidance scales that the same samples are shown at")
    temperature: float = opt(1.0, "sampling temperature")
    every: int = opt(1, "sample and decode one image for every so many training images of a class", low=1)
    num_tokens: int = opt(16, "tokens of the reconstructions that samples are compared with")
    lengths: list[int] = opt([], "token counts at which samples are measured, too")
    num_images: int | None = opt(None, "use at most so many images of each folder, evenly spread; null = all", low=1)
    per_class: int = opt(8, "samples shown per class: the first ones, not selected")
    seed: int = opt(0, "seed of the samples")
    device: str = opt("auto", "auto | cpu | cuda")


def run(options: DrawingsConfig) -> dict[str, Any]:
    """Sample, measure and write; an earlier result for the same question is reused."""
    with dist.joined(options.device) as world:
        settings = SampleConfig(
            gpt_ckpt=options.gpt_ckpt, vq_ckpt=options.vq_ckpt, sample_dir=options.out, precision=PRECISION,
            vq_precision=PRECISION, seed=options.seed,
        )  # fmt: skip
        sampler = ImageSampler.load(settings, world.device)
        size = sampler.tokenizer.image_size
        train, held_out = open_images(options.train_path, size), open_images(options.val_path, size)
        if train.classes != held_out.classes:
            raise UserError(f"{options.val_path!r} and {options.train_path!r} must have the same classes")
        path, question = Path(options.out, "results.json"), _question(options, train, held_out)
        earlier = record.read_current(path, question)
        if earlier is not None:
            print(f"{path}: measured before")
            return earlier
        pixels, labels = zip(*(read(folder, options.num_images) for folder in (train, held_out)), strict=True)
        job = _Job(options, sampler, world.device, *pixels)
        sampled = labels[0][:: options.every]
        results = job.measure(*labels, sampled)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path.with_name("pictures.npz"), **job.pictures(sampled))
        results = record.write(path, question, results | {"classes": train.classes})
        print(json.dumps({key: value for key, value in results.items() if isinstance(value, float)}, indent=1))
        return results


def _question(options: DrawingsConfig, train: ImageFolder, held_out: ImageFolder) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("out", "device")}
    checkpoints = {
        "gpt_ckpt": record.checkpoint(options.gpt_ckpt, "model"), "vq_ckpt": record.checkpoint(options.vq_ckpt, "ema"),
    }  # fmt: skip
    files = train.files(len(train)) + held_out.files(len(held_out))
    return {"job": "drawings", "precision": PRECISION, **asked, **checkpoints, "files": record.files_key(files)}


def read(folder: ImageFolder, count: int | None) -> tuple[Tensor, np.ndarray]:
    """All images of a folder, or `count` of them: uint8 (N,H,W,3), and their labels (N,)."""
    chosen = spread(len(folder), min(len(folder), count or len(folder)))
    pixels = torch.cat([batch["pixels"] for batch in batches(folder, chosen, BATCH)])
    return pixels, np.array(folder.labels)[chosen]


class _Job:
    def __init__(
        self, options: DrawingsConfig, sampler: ImageSampler, device: torch.device, train: Tensor, held_out: Tensor
    ) -> None:
        self.options, self.sampler, self.device = options, sampler, device
        self.train, self.held_out = train, held_out
        self.samples = self.known = torch.empty(0)

    def measure(
        self, train_labels: np.ndarray, held_out_labels: np.ndarray, sampled_labels: np.ndarray
    ) -> dict[str, Any]:
        codes = self.draw(sampled_labels, np.arange(len(sampled_labels)), self.options.cfg_scale)
        own, mirrored, unseen = (self.encode(x) for x in (self.train, self.train.flip(2), self.held_out))
        length = codes.shape[1]
        self.samples, self.known = self.decode(codes), self.decode(torch.cat((own, mirrored))[:, :length])
        samples = {"": self.samples, **{f"_{k}": self.decode(codes[:, :k]) for k in self.options.lengths}}
        sets = {
            **{f"samples{k}": pixels for k, pixels in samples.items()},
            "reconstructions": self.decode(own[:: self.options.every, : self.options.num_tokens]), "train": self.train,
            "held_out": self.held_out,
        }  # fmt: skip
        results: dict[str, Any] = {"fd": {}, "images": {name: len(pixels) for name, pixels in sets.items()}}
        for name, network in NETWORKS.items():
            extractor = EfficientNetLite(network, 96).to(self.device)
            features = {key: self.features(extractor, pixels) for key, pixels in sets.items()}
            held_out = features.pop("held_out")
            target = fit(held_out)
            results["fd"][name] = {key: frechet_distance(target, fit(found)) for key, found in features.items()}
            if "probe_accuracy" not in results:
                classifier = linear_classifier.fit(features["train"], train_labels, int(train_labels.max()) + 1)
                results["probe_accuracy"] = classifier.accuracy(held_out, held_out_labels)
                for k in samples:
                    results[f"class_accuracy{k}"] = classifier.accuracy(features[f"samples{k}"], sampled_labels)
        found, held_out = (nearest(pixels, self.known)[0] for pixels in (self.samples, self.decode(unseen[:, :length])))
        threshold = float(np.quantile(held_out, COPY_QUANTILE))
        return results | {
            "near_copies": float((found < threshold).mean()), "copy_threshold": threshold,
            "nearest_rms": {"samples": float(np.median(found)), "held_out": float(np.median(held_out))},
        }

    @torch.inference_mode()
    def draw(self, labels: np.ndarray, ids: np.ndarray, scale: float) -> Tensor:
        """Codes (N,num_tokens) of samples of the given classes; sample i depends on the seed and its id."""
        sampling, rows = Sampling(temperature=self.options.temperature), []
        for start in tqdm(range(0, len(labels), BATCH), desc=f"samples at {scale:g}", unit="batch"):
            given = [torch.from_numpy(x[start : start + BATCH]).to(self.device) for x in (labels, ids)]
            rows.append(self.sampler.codes(*given, Guidance(scale=scale), sampling, self.options.seed))
        return torch.cat(rows)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N,k) -> uint8 (N,H,W,3)."""
        return torch.cat([torch.from_numpy(self.sampler.pixels(part)) for part in codes.split(BATCH)])

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (N,H,W,3) -> codes (N,num_tokens)."""
        parts = tqdm(pixels.split(BATCH), desc="codes", unit="batch")
        return torch.cat([self.sampler.inference.encode(part.to(self.device)) for part in parts])

    @torch.inference_mode()
    def prefixes(self) -> np.ndarray:
        """STRIPS held-out images decoded from 1, 2, ... tokens (a grid: from all), uint8 (STRIPS,N,H,W,3)."""
        tokenizer, found = self.sampler.tokenizer, []
        for index in np.linspace(0, len(self.held_out) - 1, STRIPS + 2)[1:-1].round().astype(int):
            codes = tokenizer.encode(from_pixels(self.held_out[index : index + 1].to(self.device)))
            if tokenizer.is_1d:
                lengths = torch.arange(1, codes.shape[1] + 1, device=self.device)
                found.append(to_pixels(tokenizer.decode(codes.expand(len(lengths), -1), lengths)))
            else:
                found.append(to_pixels(tokenizer.decode(codes)))
        return np.stack(found)

    @torch.inference_mode()
    def features(self, network: EfficientNetLite, pixels: Tensor) -> np.ndarray:
        parts = (network.pooled(from_pixels(part.to(self.device))).float().cpu() for part in pixels.split(BATCH))
        return torch.cat(list(parts)).numpy()

    def pictures(self, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The first samples of each class, the training image nearest to each, and one per class at every scale."""
        shown = np.concatenate([np.flatnonzero(labels == k)[: self.options.per_class] for k in np.unique(labels)])
        samples = self.samples[torch.from_numpy(shown)]
        near = nearest(samples, self.known)[1] % len(self.train)
        firsts = np.array([np.flatnonzero(labels == k)[0] for k in np.unique(labels)])
        grid = [self.decode(self.draw(labels[firsts], firsts, scale)).numpy() for scale in self.options.scales]
        return {
            "prefixes": self.prefixes(), "samples": samples.numpy(), "labels": labels[shown],
            "nearest": self.train[torch.from_numpy(near)].numpy(), "scales": np.array(self.options.scales),
            "guided": np.stack(grid),
        }  # fmt: skip


def nearest(images: Tensor, known: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For uint8 images (N,H,W,3): root mean squared difference to the nearest of `known` (0 to 255), and its number."""

    def small(pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), 4).flatten(1)

    wanted, others = small(images), small(known)
    # Without the matrix product, whose rounding puts equal images apart.
    distances, index = torch.cdist(wanted, others, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return (distances / wanted.shape[1] ** 0.5).numpy(), index.numpy()


def main() -> None:
    run(config.parse(DrawingsConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
