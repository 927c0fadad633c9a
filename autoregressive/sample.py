"""Sample images: `python -m autoregressive.sample --gpt-ckpt RUN --vq-ckpt RUN --sample-dir DIR --cfg-scale 2.0 ...`.

Writes PNGs, labels.npy and settings.json into DIR, and DIR.npz. The same command again makes only what is missing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.config import DrawConfig, SampleConfig, Sampling
from autoregressive.cuda_graph import RecordedDraw, SideQueue
from autoregressive.fast_linears import EIGHT_BITS, pack_linears, store_in_eight_bits
from autoregressive.generate import check_num_tokens, generate
from autoregressive.guidance import Guidance
from autoregressive.layers import KVCache, keep_caches_uncompiled
from autoregressive.models.gpt import GPT
from autoregressive.paper_flags import SAMPLE_FLAGS
from autoregressive.released import class_names, load_compatible
from common import checkpoint, config, dist
from common.batching import in_fixed_batches
from common.data import share
from common.dist import World
from common.errors import UserError
from common.images import read_image, to_pixels, write_png
from common.npz import NpzWriter
from common.provenance import read_provenance
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer


class ImageSampler:
    """A generator and the tokenizer that decodes for it, loaded once for any number of batches and settings."""

    def __init__(
        self, generator: GPT, tokenizer: Tokenizer, precision: str = "none", vq_precision: str = "none",
        compile: bool = False,
    ) -> None:
        """Takes both models over: below fp32 and compiled they are changed in place.

        Raises: UserError for an unknown precision.
        """
        if precision not in ("none", "bf16", *EIGHT_BITS):
            raise UserError(f"precision got {precision!r}; expected none, bf16, {', '.join(EIGHT_BITS)}")
        device = next(generator.parameters()).device
        if precision != "none":
            generator = generator.to(torch.bfloat16)
        if precision in EIGHT_BITS:
            store_in_eight_bits(generator, precision)
        elif precision == "bf16" and device.type == "cpu":
            pack_linears(generator)
        if compile:
            from common.parallel import compile_units  # it imports FSDP, which no other sampling has to wait for

            keep_caches_uncompiled()
            compile_units(generator)
        self.generator = generator
        self.tokenizer, self._inference = tokenizer, Inference(tokenizer, vq_precision, compile)
        self._cache: KVCache | None = None
        self._recorded = RecordedDraw(generator) if compile and device.type == "cuda" else None

    @classmethod
    def load(cls, config: DrawConfig, device: torch.device) -> ImageSampler:
        tokenizer = tokenizers.load(config.vq_ckpt, config.vq_weights, device, config.tok_config, config.image_size)
        stated = {key: value for key, value in config.generator.items() if value is not None} or None
        generator = load_compatible(config.gpt_ckpt, config.gpt_weights, device, tokenizer, config.gpt_model, stated)
        return cls(generator, tokenizer, config.precision, config.vq_precision, config.compile)

    @torch.inference_mode()
    def codes(
        self, labels: Tensor, image_ids: Tensor, guidance: Guidance, sampling: Sampling, seed: int,
        num_tokens: int | None = None, forced: Tensor | None = None, keep: Tensor | None = None,
    ) -> Tensor:
        """labels (B,), global image numbers (B,) -> int64 (B, num_tokens); where `keep` is True, the `forced` codes."""
        rows = 2 * len(labels)
        if self._cache is None or self._cache.rows < rows:
            self._cache = self.generator.new_cache(rows)
        if self._recorded and forced is None:
            return self._recorded(labels, image_ids, self._cache, num_tokens, guidance, sampling, seed)
        return generate(
            self.generator, labels, num_tokens, guidance=guidance, sampling=sampling, seed=seed, image_ids=image_ids,
            cache=self._cache, forced=forced, keep=keep,
        )

    @torch.inference_mode()
    def pixels(self, codes: Tensor) -> np.ndarray:
        """Codes (B, n) -> uint8 (B, H, W, 3)."""
        return to_pixels(in_fixed_batches(self._inference.decode, codes))


def choose_labels(config: SampleConfig, num_classes: int) -> np.ndarray:
    """The class of each image, int64 (num_images,); a shorter run's labels are a prefix of a longer one's.

    Raises: UserError for classes that the generator does not know.
    """
    classes = np.asarray(range(num_classes) if config.classes is None else config.classes, dtype=np.int64)
    if not len(classes) or classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(f"--class-idx got {config.classes}; this generator knows classes 0 to {num_classes - 1}")
    if config.labels == "balanced":
        return classes[np.arange(config.num_images) % len(classes)]
    if config.labels == "uniform":
        drawn = np.random.Generator(np.random.Philox(config.seed)).random(config.num_images)
        return classes[(drawn * len(classes)).astype(np.int64)]
    raise UserError(f"labels got {config.labels!r}; expected balanced or uniform")


def sample(sampler: ImageSampler, config: SampleConfig, world: World) -> Path:
    """Make the images that are not there yet, pack the first num_images into `<sample_dir>.npz`; returns its path.

    Raises: UserError if the folder holds samples of other settings.
    """
    # Wrong settings must not claim the folder.
    config.guidance.scales(check_num_tokens(sampler.generator, config.num_tokens))
    folder = Path(config.sample_dir)
    labels = choose_labels(config, sampler.generator.num_classes)
    paths = _paths(folder, labels, config, sampler.generator.num_classes)
    if world.is_main:
        _claim(folder, _settings(config))
        for parent in {path.parent for path in paths}:
            parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "labels.npy", labels)
    dist.barrier()
    todo = [index for index, path in enumerate(paths) if not path.is_file()]
    dist.barrier()  # Nobody writes while others still look for what is missing.
    mine = [todo[at] for at in share(len(todo), world.rank, world.size)]
    bar = tqdm(total=len(mine), desc=folder.name, unit="image", disable=not world.is_main, dynamic_ncols=True)
    queue = SideQueue(world.device)
    with bar, ThreadPoolExecutor() as writers:
        written: list[Future] = []

        def write(ids: list[int], images: np.ndarray) -> None:
            """PNGs of one batch are compressed while the next is drawn."""
            nonlocal written
            _wait(written)
            written = [writers.submit(write_png, paths[index], image) for index, image in zip(ids, images, strict=True)]
            bar.update(len(ids))

        drawn: tuple[list[int], Callable[[], np.ndarray]] | None = None
        for at in range(0, len(mine), config.batch_size):
            ids = mine[at : at + config.batch_size]
            codes = sampler.codes(
                torch.from_numpy(labels[ids]).to(world.device), torch.tensor(ids, device=world.device),
                config.guidance, config.sampling, config.seed, config.num_tokens,
            )
            # On a GPU this batch is only queued yet: the one before is decoded beside it.
            previous, drawn = drawn, (ids, queue.after_now(sampler.pixels, codes))
            if previous:
                write(previous[0], previous[1]())
        if drawn:
            write(drawn[0], drawn[1]())
        _wait(written)
    dist.barrier()
    packed = _packed(folder)
    if world.is_main:
        side = sampler.tokenizer.image_size
        names = read_provenance(config.gpt_ckpt).get("classes")
        about = {"kind": "generation", "num_images": len(paths), "class_names": names, **_settings(config)}
        writer = NpzWriter(packed, len(paths), (side, side), about)
        for path in paths:
            writer.write(np.asarray(read_image(path))[None])
        writer.close()
    dist.barrier()
    return packed


def _wait(written: list[Future]) -> None:
    """Until all is written. Raises: what went wrong on the way."""
    for each in written:
        each.result()


def run(config: SampleConfig) -> Path:
    """The job behind `python -m autoregressive.sample`."""
    world = dist.init(config.device)
    packed = sample(ImageSampler.load(config, world.device), config, world)
    if world.is_main:
        print(f"{config.num_images} images: {config.sample_dir}, packed: {packed}")
    dist.close()
    return packed


def remove(folder: Path) -> None:
    """Delete what `sample` made in and beside `folder`, and nothing else that somebody may have put there."""
    _packed(folder).unlink(missing_ok=True)
    for name in ("labels.npy", "settings.json"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("[0-9]" * 6 + "*.png"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _packed(folder: Path) -> Path:
    return folder.with_name(folder.name + ".npz")


def _paths(folder: Path, labels: np.ndarray, config: SampleConfig, num_classes: int) -> list[Path]:
    """`<index>.png`; with chosen classes `class_<id>_<name>/<name>_<place in class>.png`."""
    if config.classes is None:
        return [folder / f"{index:06d}.png" for index in range(len(labels))]
    names = [name.split(",")[0].replace("/", "-") for name in class_names(config.gpt_ckpt, num_classes)]
    seen: dict[int, int] = {}
    paths = []
    for label in labels.tolist():
        place = seen[label] = seen.get(label, -1) + 1
        paths.append(folder / f"class_{label}_{names[label]}" / f"{names[label]}_{place:06d}.png")
    return paths


def _settings(config: SampleConfig) -> dict[str, Any]:
    """Everything that the images depend on."""
    kept = ("classes", "labels", "num_tokens", "seed", "precision", "vq_precision", "gpt_weights", "vq_weights")
    compiled = {"compile": True} if config.compile else {}  # rounds differently
    return {
        **{key: getattr(config, key) for key in kept}, **compiled,
        "guidance": dataclasses.asdict(config.guidance), "sampling": dataclasses.asdict(config.sampling),
        "generator": checkpoint.fingerprint(checkpoint.resolve_folder(config.gpt_ckpt)),
        "tokenizer": checkpoint.fingerprint(checkpoint.resolve_folder(config.vq_ckpt)),
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if path.is_file():
        found = json.loads(path.read_text())
        differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        if differing:
            raise UserError(
                f"{str(folder)!r} holds samples of other settings ({', '.join(differing)} differ); "
                "choose another --sample-dir or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1))


def main() -> None:
    settings = config.parse(SampleConfig, aliases=SAMPLE_FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
