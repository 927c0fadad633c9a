"""Encode and decode images with a tokenizer and measure what is lost, at one or many token counts.

    bash scripts/reconstruction.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --num-tokens [8,16,32,64]

writes `<sample-dir>/results.json` (PSNR, SSIM, codebook use and what else was asked for, with the record of how),
`tokens_<k>.npz` (the reconstructions, in dataset order) and `previews/` (originals beside reconstructions).
With --qualitative every image is a preview and no distribution is measured.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.paper_flags import COMMON_FLAGS
from common import config, dist
from common.batching import in_fixed_batches
from common.config import build, opt, part
from common.containers import open_images
from common.data import batches, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels, write_png
from common.npz import PartWriter, join
from common.numerics import autocast
from evaluations import record
from evaluations.c2i import scores
from evaluations.harness import DecodingConfig, grid
from evaluations.metrics import FEATURES
from evaluations.metrics.codebook_usage import CodeUsage
from evaluations.metrics.features import EfficientNetLite2
from evaluations.metrics.frechet import Moments, frechet_distance
from evaluations.metrics.psnr import psnr
from evaluations.metrics.ssim import ssim
from tokenizer.model import Tokenizer


@dataclass
class ReconstructionConfig(DecodingConfig):
    sample_dir: str = opt("results/reconstructions/vq", "where results go")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    qualitative: bool = opt(False, "only write previews, of all images")
    num_previews: int = opt(16, "previews written beside the figures, evenly spread over the folder")
    clear_cache: bool = opt(False, "delete the .npz files at the end; figures and previews stay")
    global_seed: int = opt(0, "kept in the record; nothing here is random")
    precision: str = opt("none", "none (fp32) | bf16 autocast")


def _lpips(value: str) -> list[str]:
    return ["perceptual.name=lpips_vgg"] if value == "true" else []


_lpips.switch = True

FLAGS: dict[str, config.Alias] = {
    "quant-way": COMMON_FLAGS["quant-way"],
    "lpips": _lpips,
    "perceptual": "perceptual.name",
}


NOT_IN_QUESTION = ("sample_dir", "clear_cache", "device", "per_proc_batch_size", "num_workers", "eval_python_path")
"""Options that do not change the figures."""

VERSION = 2
"""Goes up when the same options would give other figures, so that earlier results are not reused."""


def run(config: ReconstructionConfig) -> dict[str, Any]:
    """Measure, write `results.json` and return it; an earlier result is reused only for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: ReconstructionConfig, world: World) -> dict[str, Any]:
    out = Path(config.sample_dir)
    tokenizer = tokenizers.load(config.vq_ckpt, config.weights, world.device, config.model_config, config.image_size)
    _check(config, tokenizer)
    lengths = sorted(set(config.num_tokens)) or [tokenizer.num_tokens]
    dataset = open_images(config.data_path, tokenizer.image_size)
    count = min(len(dataset), config.num_images or len(dataset))
    if config.frechet and count < 2:
        raise UserError(f"--frechet compares distributions; got {count} image, expected at least 2 (--num-images)")
    networks = Networks.build(config, world)
    question = _question(config, dataset.files(count), lengths, networks)
    earlier = dist.gather_objects(record.read_current(out / "results.json", question))[0]
    if earlier is not None:
        if world.is_main:
            print(f"{out / 'results.json'}: this was measured before; delete the file to measure again")
        return earlier
    job = Measurement(config, world, tokenizer, lengths, count, networks)
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / "previews", ignore_errors=True)
    dist.barrier()
    mine = share(count, world.rank, world.size)
    bar = tqdm(total=len(mine), desc="reconstruction", unit="image", disable=not world.is_main, dynamic_ncols=True)
    for batch in batches(dataset, mine, config.per_proc_batch_size, config.num_workers):
        job.add(batch["index"].tolist(), batch["pixels"])
        bar.update(len(batch["index"]))
    bar.close()
    results = job.finish(question)
    dist.barrier()
    return results


def _question(
    config: ReconstructionConfig, paths: list[str], lengths: list[int], networks: Networks
) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_IN_QUESTION}
    asked |= {
        "job": "reconstruction", "version": VERSION, "num_tokens": lengths, "images": len(paths),
        "files": record.files_key(paths), "tokenizer": record.checkpoint(config.vq_ckpt), "networks": networks.keys(),
        "ssim_data_range": "1.0 for images in [0,1]; ssim_data_range_2 repeats the papers' scripts",
    }
    if config.gt_npz_path:
        asked |= scores.question(
            config.gt_npz_path, config.sample_dir, "reconstruction", config.engine, config.eval_python_path,
            config.inception_path,
        )
    return asked


def _check(config: ReconstructionConfig, tokenizer: Tokenizer) -> None:
    wrong = [k for k in config.num_tokens if not 1 <= k <= tokenizer.num_tokens]
    if wrong:
        raise UserError(f"--num-tokens holds {wrong[0]}; this tokenizer decodes 1 to {tokenizer.num_tokens} tokens")
    if config.frechet and config.frechet not in FEATURES:
        raise UserError(f"--frechet got {config.frechet!r}; known: {', '.join(FEATURES)}")
    if config.gt_npz_path and config.qualitative:
        raise UserError("--qualitative measures no distribution; leave --gt-npz-path out")
    if config.gt_npz_path and not Path(config.gt_npz_path).is_file():
        raise UserError(f"--gt-npz-path {config.gt_npz_path!r} does not exist; scripts/val.sh makes a reference .npz")


@dataclasses.dataclass(frozen=True)
class Networks:
    """The frozen networks that metrics look through; None where none was asked for."""

    extractor: EfficientNetLite2 | None
    perceptual: torch.nn.Module | None

    @classmethod
    def build(cls, config: ReconstructionConfig, world: World) -> Networks:
        measured = config.frechet and not config.qualitative
        extractor = FEATURES[config.frechet](device=world.device) if measured else None
        perceptual = build("evaluations.metrics:PERCEPTUAL", config.perceptual) if config.perceptual else None
        return cls(extractor, perceptual and perceptual.to(world.device))

    def keys(self) -> dict[str, str]:
        """Name -> hash of the weights."""
        found = {self.perceptual.name: record.weights_key(self.perceptual)} if self.perceptual is not None else {}
        return found | ({self.extractor.name: record.weights_key(self.extractor.network)} if self.extractor else {})


class Measurement:
    """Everything that is added up over the images of this process."""

    def __init__(
        self, config: ReconstructionConfig, world: World, tokenizer: Tokenizer, lengths: list[int], count: int,
        networks: Networks,
    ) -> None:
        self.config, self.world, self.tokenizer, self.lengths, self.count = config, world, tokenizer, lengths, count
        self.out = Path(config.sample_dir)
        measured = not config.qualitative
        self.extractor, self.perceptual = networks.extractor, networks.perceptual
        self.usage = CodeUsage(tokenizer.num_tokens, tokenizer.codebook_size)
        self.values: dict[int, dict[str, list[float]]] = {k: {} for k in lengths}
        self.moments = {k: Moments() for k in (0, *lengths)}  # 0: the originals
        self.parts = {k: PartWriter(self.npz(k), world.rank) for k in lengths} if measured else {}
        shown = count if config.qualitative else min(config.num_previews, count)
        self.previewed = {round((i + 0.5) * count / shown - 0.5) for i in range(shown)}

    def npz(self, k: int) -> Path:
        return self.out / f"tokens_{k:04d}.npz"

    @torch.inference_mode()
    def add(self, indices: list[int], pixels: Tensor) -> None:
        """One batch of originals, uint8 (B,H,W,3)."""
        images = from_pixels(pixels).to(self.world.device)
        with autocast(self.config.precision, self.world.device):
            codes = in_fixed_batches(self.tokenizer.encode, images)
        self.usage.update(codes)
        self._features(0, images)
        for index, original in zip(indices, pixels.numpy(), strict=True):
            if index in self.previewed:
                self._preview(index, "_gt", original)
        for k in self.lengths:
            with autocast(self.config.precision, self.world.device):
                decoded = in_fixed_batches(self.tokenizer.decode, codes[:, :k]).float()
            rounded_pixels = to_pixels(decoded)
            rounded = from_pixels(torch.from_numpy(rounded_pixels)).to(images.device)
            psnrs, ssims = psnr(rounded, images, data_range=2.0), ssim(rounded, images, 2.0, 4.0)
            measured = {"psnr": psnrs, "ssim": ssims[0], "ssim_data_range_2": ssims[1]}
            if self.perceptual is not None:
                # The papers take LPIPS of the decoder's output as it is, before it is rounded to 8 bits.
                measured[self.perceptual.name] = self.perceptual(decoded, images)
            for name, values in measured.items():
                self.values[k].setdefault(name, []).extend(values.tolist())
            self._features(k, rounded)
            if k in self.parts:
                self.parts[k].write(rounded_pixels)
            for index, reconstruction in zip(indices, rounded_pixels, strict=True):
                if index in self.previewed:
                    self._preview(index, f"_tokens{k:04d}", reconstruction)

    def _features(self, k: int, images: Tensor) -> None:
        if self.extractor is not None:
            self.moments[k].update(self.extractor(images)[0].cpu().numpy())

    def _preview(self, index: int, suffix: str, pixels: Any) -> None:
        folder = self.out / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{index:06d}{suffix}.png", pixels)

    def finish(self, question: dict[str, Any]) -> dict[str, Any]:
        """Gather from all processes; the main one packs the `.npz`, runs the evaluator, writes and returns the
        results."""
        for written in self.parts.values():
            written.close()
        gathered = dist.gather_objects((self.values, self.moments, self.usage.counts))
        dist.barrier()
        if not self.world.is_main:
            return {}
        for _, moments, counts in gathered[1:]:
            self.usage.counts += counts
            for k, mine in self.moments.items():
                mine.merge(moments[k])
        tokens: dict[str, dict[str, float]] = {}
        original = self.moments[0].gaussian() if self.extractor else None
        c, features, evaluator = self.config, {}, None
        flags = record.few_images(self.count) if self.parts and (c.frechet or c.gt_npz_path) else []
        checkpoint = {**question["tokenizer"], "parameters": sum(p.numel() for p in self.tokenizer.parameters())}
        if self.extractor is not None:
            reference = {"path": c.data_path, "files": question["files"], "images": self.count}
            name = self.extractor.name
            features[name] = record.Features("torch", question["networks"][name], reference)
        if c.gt_npz_path and self.parts:
            chosen = question["engine"]
            evaluator = scores.Scores(c.gt_npz_path, chosen, c.eval_python_path, c.inception_path, self.world.device)
        for k in self.lengths:
            parts = [values[k] for values, _, _ in gathered]
            names = next(list(part) for part in parts if part)
            tokens[str(k)] = {name: _mean([x for part in parts for x in part.get(name, [])]) for name in names}
            if original is not None:
                tokens[str(k)][self.config.frechet] = frechet_distance(original, self.moments[k].gaussian())
            if self.parts:
                size = self.tokenizer.image_size
                about = {
                    "kind": "reconstruction", "num_tokens": k, "precision": c.precision, "tokenizer": checkpoint,
                    "files": question["files"],
                }
                join(self.npz(k), self.count, (size, size), self.world.size, about)
                if evaluator is not None:
                    figures, features["inception"], more = evaluator(self.npz(k))
                    flags += more
                    tokens[str(k)] |= {"rfid" if name == "fid" else name: value for name, value in figures.items()}
                if self.config.clear_cache:
                    self.npz(k).unlink()
        write_png(self.out / "previews" / "grid.png", self._grid())
        protocol = record.Protocol(
            metrics=list(next(iter(tokens.values()))), features=features, images=self.count, labels=None, guidance=None,
            seed=None, precision=c.precision, num_tokens=self.lengths, checkpoints={"tokenizer": checkpoint},
        )
        results = {"num_tokens": self.tokenizer.num_tokens, "codes": self.usage.summary(), "tokens": tokens}
        results = record.write(self.out / "results.json", question, results, flags, protocol)
        _print(results, self.out)
        return results

    def _grid(self) -> Any:
        import numpy as np
        from PIL import Image

        def read(index: int, suffix: str) -> np.ndarray:
            return np.asarray(Image.open(self.out / "previews" / f"{index:06d}{suffix}.png"))

        suffixes = ["_gt", *(f"_tokens{k:04d}" for k in reversed(self.lengths))]
        return grid([[read(index, suffix) for suffix in suffixes] for index in sorted(self.previewed)[:64]])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _print(results: dict[str, Any], out: Path) -> None:
    for k, figures in results["tokens"].items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        print(f"{k:>4} tokens: {shown}")
    print(f"codebook usage {results['codes']['codebook_usage']:.1%} of {results['codes']['images']} images' codes")
    print(f"results: {out / 'results.json'}, previews: {out / 'previews'}")


def main() -> None:
    settings = config.parse(ReconstructionConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
