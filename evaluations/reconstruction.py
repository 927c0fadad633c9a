"""Encode and decode images with a tokenizer and measure what is lost, at one or many token counts.

    bash scripts/reconstruction.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --num-tokens [8,16,32,64]

writes `<sample-dir>/results.json` (PSNR, SSIM, codebook use and what else was asked for, with the record of how),
`tokens_<k>.npz` (the reconstructions, in dataset order) and `previews/` (originals beside reconstructions).
With --qualitative every image is a preview and no distribution is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.paper_flags import COMMON_FLAGS
from common import config, dist
from common.batching import in_fixed_batches
from common.config import build, opt, part
from common.data import share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, read_image, to_pixels, write_png
from common.numerics import autocast
from common.options import PRECISIONS
from evaluations import harness, record
from evaluations.harness import DecodingConfig, ImageSets
from evaluations.metrics.codebook_usage import CodeUsage
from evaluations.metrics.features import Extractor
from evaluations.metrics.psnr import psnr
from evaluations.metrics.ssim import ssim
from tokenizer.model import Tokenizer


@dataclass
class ReconstructionConfig(DecodingConfig):
    sample_dir: str = opt("results/reconstructions/vq", "where results go")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    qualitative: bool = opt(False, "write previews of all images and no .npz")
    num_previews: int = opt(16, "images that are written as previews, evenly spread over the folder")
    clear_cache: bool = opt(False, "delete the .npz files at the end; figures and previews stay")
    global_seed: int = opt(0, "written into the record; the job draws no random numbers")
    precision: str = opt("none", "none = fp32, bf16 = autocast", PRECISIONS)


def _lpips(value: str) -> list[str]:
    return ["perceptual.name=lpips_vgg"] if value == "true" else []


_lpips.switch = True

FLAGS: dict[str, config.Alias] = {
    "quant-way": COMMON_FLAGS["quant-way"],
    "lpips": _lpips,
    "perceptual": "perceptual.name",
}


NOT_IN_QUESTION = {
    "sample_dir": "where results go", "clear_cache": "what is deleted afterwards", "device": "equal up to rounding",
    "per_proc_batch_size": "speed", "num_workers": "speed",
    "eval_python_path": "the engine that it selects is in the question",
}
"""Options that do not change the figures, with the reason."""

VERSION = 3


def run(config: ReconstructionConfig) -> dict[str, Any]:
    """Measure, write `results.json` and return it; an earlier result is reused for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: ReconstructionConfig, world: World) -> dict[str, Any]:
    out = Path(config.sample_dir)
    tokenizer = harness.load_tokenizer(
        config.vq_ckpt, config.weights, world, config.model_config, config.image_size
    )
    _check(config, tokenizer)
    lengths = sorted(set(config.num_tokens)) or [tokenizer.num_tokens]
    dataset, count = harness.open_crops(config.data_path, tokenizer.image_size, config.num_images)
    extractor = harness.load_extractor(config.frechet, world.device)
    if extractor and count < 2:
        raise UserError(f"--frechet compares distributions; got {count} image, expected at least 2 (--num-images)")
    perceptual = None
    if config.perceptual:
        perceptual = build("evaluations.metrics:PERCEPTUAL", config.perceptual).to(world.device)
    networks = {network.name: network for network in (extractor, perceptual) if network is not None}
    question = harness.question(
        config, "reconstruction", VERSION, NOT_IN_QUESTION, num_tokens=lengths, images=count,
        files=record.files_key(dataset.files(count)), tokenizer=record.checkpoint(config.vq_ckpt, config.weights),
        networks={name: record.weights_key(getattr(network, "network", network)) for name, network in networks.items()},
        ssim_data_range="1.0 for images in [0,1]; ssim_data_range_2 repeats the papers' scripts",
        **harness.reference_sources(config, config.sample_dir, "reconstruction"),
    )

    def measure() -> harness.Measured | None:
        if world.is_main:
            for preview in (out / "previews").glob("*.png"):  # of an earlier run
                preview.unlink()
            (out / "previews").mkdir(parents=True, exist_ok=True)
        dist.barrier()
        job = Measurement(config, world, tokenizer, lengths, count, extractor, perceptual)
        mine = share(count, world.rank, world.size)
        workers = (config.per_proc_batch_size, config.num_workers)
        for batch in harness.visit(dataset, mine, "reconstruction", *workers):
            job.add(batch["index"].tolist(), batch["pixels"])
        return job.finish(question)

    results = harness.answer(out / "results.json", question, world, measure)
    if world.is_main:
        _print(results, out)
    return results


def _check(config: ReconstructionConfig, tokenizer: Tokenizer) -> None:
    wrong = [k for k in config.num_tokens if not 1 <= k <= tokenizer.num_tokens]
    if wrong:
        raise UserError(f"--num-tokens got {wrong[0]}; this tokenizer decodes 1 to {tokenizer.num_tokens} tokens")
    if config.gt_npz_path and config.qualitative:
        raise UserError("--qualitative measures no distribution; leave --gt-npz-path out")
    if config.gt_npz_path and not Path(config.gt_npz_path).is_file():
        raise UserError(f"--gt-npz-path {config.gt_npz_path!r} does not exist; scripts/val.sh makes a reference .npz")


class Measurement:
    """Sums over the images of this process."""

    def __init__(
        self, config: ReconstructionConfig, world: World, tokenizer: Tokenizer, lengths: list[int], count: int,
        extractor: Extractor | None, perceptual: nn.Module | None,
    ) -> None:
        self.config, self.world, self.tokenizer, self.lengths, self.count = config, world, tokenizer, lengths, count
        self.out, self.perceptual, self.packed = Path(config.sample_dir), perceptual, not config.qualitative
        files = {k: self.out / f"tokens_{k:04d}.npz" for k in lengths}
        self.sets = ImageSets(world, files, extractor if self.packed else None, self.packed)
        self.usage, self.encode, self.decode = None, tokenizer.encode_vectors, self._decode_vectors
        if not tokenizer.quantizer.continuous:
            self.usage = CodeUsage(tokenizer.num_tokens, tokenizer.codebook_size)
            self.encode, self.decode = tokenizer.encode, tokenizer.decode
        self.values: dict[int, dict[str, list[float]]] = {k: {} for k in lengths}
        shown = count if config.qualitative else min(config.num_previews, count)
        self.previewed = set(harness.spread(count, shown))

    @torch.inference_mode()
    def add(self, indices: list[int], pixels: Tensor) -> None:
        """One batch of originals, uint8 (B,H,W,3)."""
        images = from_pixels(pixels).to(self.world.device)
        with autocast(self.config.precision, self.world.device):
            codes = in_fixed_batches(self.encode, images)
        if self.usage:
            self.usage.update(codes)
        self.sets.add_originals(images)
        self._preview(indices, "_gt", pixels.numpy())
        for k in self.lengths:
            with autocast(self.config.precision, self.world.device):
                decoded = in_fixed_batches(self.decode, codes[..., :k]).float()
            rounded_pixels, rounded, measured = compare(decoded, images, self.perceptual)
            for name, values in measured.items():
                self.values[k].setdefault(name, []).extend(values.tolist())
            self.sets.add(k, rounded, rounded_pixels)
            self._preview(indices, f"_tokens{k:04d}", rounded_pixels)

    def _decode_vectors(self, vectors: Tensor) -> Tensor:
        return self.tokenizer.decode_vectors(vectors).images

    def _preview(self, indices: list[int], suffix: str, pixels: np.ndarray) -> None:
        for index, image in zip(indices, pixels, strict=True):
            if index in self.previewed:
                write_png(self.out / "previews" / f"{index:06d}{suffix}.png", image)

    def finish(self, question: dict[str, Any]) -> harness.Measured | None:
        """Merge all ranks; the main process packs the `.npz`, runs the evaluator and returns the results."""
        self.sets.gather()
        gathered = dist.gather_objects((self.values, self.usage and self.usage.counts))
        if not self.world.is_main:
            return None
        for _, counts in gathered[1:] if self.usage else ():
            self.usage.counts += counts
        c, sets = self.config, self.sets
        measured = self.packed and (c.frechet or c.gt_npz_path)
        sets.flags += record.few_images(self.count) if measured else []
        parameters = sum(p.numel() for p in self.tokenizer.parameters())
        checkpoint = {**question["tokenizer"], "parameters": parameters}
        if sets.extractor is not None:
            name = sets.extractor.name
            reference = {"path": c.data_path, "files": question["files"], "images": self.count}
            sets.features[name] = record.Features("torch", question["networks"][name], reference)
        if c.gt_npz_path:
            sets.compare_with(c, question["engine"])
        about = {
            "kind": "reconstruction", "precision": c.precision, "tokenizer": checkpoint, "files": question["files"]
        }
        tokens = {str(k): self._figures(k, [values[k] for values, _ in gathered], about) for k in self.lengths}
        write_png(self.out / "previews" / "grid.png", self._grid())
        protocol = record.Protocol(
            metrics=list(next(iter(tokens.values()))), features=sets.features, images=self.count, labels=None,
            guidance=None, seed=None, precision=c.precision, num_tokens=self.lengths,
            checkpoints={"tokenizer": checkpoint},
        )
        codes = self.usage.summary() if self.usage else None
        results = {"num_tokens": self.tokenizer.num_tokens, "codes": codes, "tokens": tokens}
        return results, sets.flags, protocol

    def _figures(self, k: int, values: list[dict[str, list[float]]], about: dict[str, Any]) -> dict[str, float | None]:
        """All figures of the reconstructions from k tokens. `values`: of every rank, by metric."""
        names = next(list(part) for part in values if part)
        figures = {name: float(np.mean([x for part in values for x in part.get(name, [])])) for name in names}
        if self.sets.extractor is not None:
            figures[self.config.frechet] = self.sets.distance(k)
        if self.packed:
            scored = self.sets.pack(k, self.count, self.tokenizer.image_size, {**about, "num_tokens": k})
            figures |= {"rfid" if name == "fid" else name: value for name, value in scored.items()}
            if self.config.clear_cache:
                self.sets.files[k].unlink()
        return figures

    def _grid(self) -> np.ndarray:
        def read(index: int, suffix: str) -> np.ndarray:
            return np.asarray(read_image(self.out / "previews" / f"{index:06d}{suffix}.png"))

        suffixes = ["_gt", *(f"_tokens{k:04d}" for k in reversed(self.lengths))]
        return harness.grid([[read(index, suffix) for suffix in suffixes] for index in sorted(self.previewed)[:64]])


def compare(
    decoded: Tensor, images: Tensor, perceptual: nn.Module | None
) -> tuple[np.ndarray, Tensor, dict[str, Tensor]]:
    """Decoded images (B,3,H,W) as uint8 (B,H,W,3) and in [-1,1], with figures (B,) against the originals."""
    pixels = to_pixels(decoded)
    rounded = from_pixels(torch.from_numpy(pixels)).to(images.device)
    # SSIM's luminance term depends on the offset of the values: it is defined for images in [0,1].
    psnrs, ssims = psnr(rounded, images, 2.0), ssim((rounded + 1) / 2, (images + 1) / 2, 1.0, 2.0)
    measured = {"psnr": psnrs, "ssim": ssims[0], "ssim_data_range_2": ssims[1]}
    if perceptual is not None:
        # As in the papers, LPIPS takes the decoder's output before it is rounded to 8 bits.
        measured[perceptual.name] = perceptual(decoded, images)
    return pixels, rounded, measured


def _print(results: dict[str, Any], out: Path) -> None:
    for k, figures in results["tokens"].items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        print(f"{k:>4} tokens: {shown}")
    if codes := results["codes"]:
        print(f"codebook usage {codes['codebook_usage']:.1%} of {codes['images']} images' codes")
    print(f"results: {out / 'results.json'}, previews: {out / 'previews'}")


def main() -> None:
    settings = config.parse(ReconstructionConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
