"""Sample images: `python -m autoregressive.sample --gpt-ckpt RUN --vq-ckpt RUN --sample-dir DIR --cfg-scale 2.0 ...`.

Writes PNGs, labels.npy and settings.json into DIR, and DIR.npz. The same command again draws only what is missing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.config import DrawConfig, SampleConfig, Sampling, for_device
from autoregressive.cuda_graph import RecordedDraw, SideQueue
from autoregressive.generate import check_num_tokens, generate
from autoregressive.guidance import Guidance
from autoregressive.layers import KVCache, keep_caches_uncompiled
from autoregressive.models.gpt import GPT
from autoregressive.paper_flags import SAMPLE_FLAGS
from autoregressive.released import class_names, load_compatible
from common import checkpoint, config, dist, npz, numerics, weight_choice
from common.batching import in_fixed_batches
from common.data import share
from common.dist import World
from common.errors import UserError
from common.images import read_image, to_pixels, write_png
from common.npz import NpzWriter, PartWriter
from common.provenance import read_provenance
from tokenizer.inference import Inference
from tokenizer.model import Tokenizer


class ImageSampler:
    """A generator and the tokenizer that decodes its codes, loaded once for any number of batches and settings."""

    def __init__(
        self, generator: GPT, tokenizer: Tokenizer, precision: str = "none", vq_precision: str = "none",
        compile: bool = False,
    ) -> None:
        """Below fp32 and when compiled, both models are changed in place.

        Raises: UserError for an unknown precision.
        """
        if precision not in ("none", "bf16"):
            raise UserError(f"precision got {precision!r}; expected none or bf16")
        device = next(generator.parameters()).device
        if precision != "none":
            generator = generator.to(torch.bfloat16)
        if compile:
            from common.parallel import compile_units  # imports FSDP, which takes time and is not needed otherwise

            keep_caches_uncompiled()
            compile_units(generator)
        self.generator = generator
        self.tokenizer, self.inference = tokenizer, Inference(tokenizer, vq_precision, compile)
        self._cache: KVCache | None = None
        self._recorded = RecordedDraw(generator) if compile and device.type == "cuda" else None

    @classmethod
    def load(cls, config: DrawConfig, device: torch.device) -> ImageSampler:
        config = for_device(config, device)
        weight_choice.announce("tokenizer", config.vq_ckpt, config.vq_weights, "vq-weights")
        weight_choice.announce("generator", config.gpt_ckpt, config.gpt_weights, "gpt-weights")
        tokenizer = tokenizers.load(config.vq_ckpt, config.vq_weights, device, config.tok_config, config.image_size)
        stated = {key: value for key, value in config.generator.items() if value is not None} or None
        generator = load_compatible(config.gpt_ckpt, config.gpt_weights, device, tokenizer, config.gpt_model, stated)
        return cls(generator, tokenizer, config.precision, config.vq_precision, config.compile)

    def batch_size(self) -> int:
        """Images per batch where none is asked for: 32 on a CPU, `fitting_batch` on a GPU."""
        weight = next(self.generator.parameters())
        if weight.device.type != "cuda":
            return 32
        return fitting_batch(self.generator, weight.itemsize, torch.cuda.mem_get_info(weight.device)[0])

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
        return to_pixels(in_fixed_batches(self.inference.decode, codes))


def fitting_batch(generator: GPT, itemsize: int, free: int) -> int:
    """The largest power of two up to 256 whose guided cache takes at most a quarter of `free` bytes.

    At 128 images the cache is already most of what a step reads, so more than 256 would not be faster.
    """
    image = 4 * generator.num_layers * (generator.num_tokens + 1) * generator.width * itemsize
    return 2 ** (min(256, max(1, free // 4 // image)).bit_length() - 1)


def choose_labels(config: SampleConfig, num_classes: int) -> np.ndarray:
    """The class of each image, int64 (num_images,); the labels of a short run are a prefix of those of a long one.

    Raises: UserError for classes outside the generator's range.
    """
    classes = np.asarray(range(num_classes) if config.classes is None else config.classes, dtype=np.int64)
    if not len(classes) or classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(f"--class-idx got {config.classes}; this generator has classes 0 to {num_classes - 1}")
    if config.labels == "balanced":
        return classes[np.arange(config.num_images) % len(classes)]
    if config.labels == "uniform":
        drawn = numerics.numpy_generator(config.seed, "labels").random(config.num_images)
        return classes[(drawn * len(classes)).astype(np.int64)]
    raise UserError(f"labels got {config.labels!r}; expected balanced or uniform")


def sample(sampler: ImageSampler, config: SampleConfig, world: World) -> Path:
    """Draw the images that do not exist yet and pack the first num_images into `<sample_dir>.npz`; returns its path.

    Raises: UserError if the folder contains samples of other settings.
    """
    # Invalid settings must not claim the folder.
    config.guidance.scales(check_num_tokens(sampler.generator, config.num_tokens))
    config = for_device(config, world.device)
    folder, packed = Path(config.sample_dir), _packed(Path(config.sample_dir))
    labels = choose_labels(config, sampler.generator.num_classes)
    paths = _paths(folder, labels, config, sampler.generator.num_classes)
    settings = _settings(config)
    names = read_provenance(config.gpt_ckpt).get("classes")
    about = {"kind": "generation", "num_images": len(paths), "class_names": names, **settings}
    if world.is_main:
        _claim(folder, settings)
        for parent in {path.parent for path in paths} if config.png else ():
            parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "labels.npy", labels)
    dist.barrier()
    found = npz.read_about(packed)
    if config.png:
        todo = [index for index, path in enumerate(paths) if not path.is_file()]
    else:
        same = found and {**found, "num_images": 0} == {**about, "num_images": 0}
        todo = list(range(found["num_images"] if same else 0, len(paths)))
    dist.barrier()  # No rank writes while others still list what is missing.
    if not todo and found == about:
        return packed
    mine = [todo[at] for at in share(len(todo), world.rank, world.size)]
    part = PartWriter(packed, world.rank)
    with ThreadPoolExecutor() as writers:
        written: list[Future] = []
        for ids, images in _drawn(sampler, config, labels, mine, world):
            part.write(images)
            if config.png:  # compressed while the next batch is drawn
                _wait(written)
                pairs = zip((paths[index] for index in ids), images, strict=True)
                written = [writers.submit(write_png, path, image) for path, image in pairs]
        _wait(written)
    part.close()
    dist.barrier()
    if world.is_main:
        side = sampler.tokenizer.image_size
        _pack(packed, paths, todo, config.png, (side, side), world.size, about)
    dist.barrier()
    return packed


def _drawn(
    sampler: ImageSampler, config: SampleConfig, labels: np.ndarray, mine: list[int], world: World
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Image numbers and their images, uint8 (B,H,W,3), batch by batch.

    On a GPU the next batch of codes is queued before this one is decoded, so both run at the same time.
    """
    bar = tqdm(
        total=len(mine), desc=Path(config.sample_dir).name, unit="image", disable=not world.is_main, dynamic_ncols=True
    )
    queue = SideQueue(world.device)
    waiting: tuple[list[int], Callable[[], np.ndarray]] | None = None
    with bar:
        size = config.batch_size or sampler.batch_size()
        for at in range(0, len(mine) + size, size):
            ids, previous, waiting = mine[at : at + size], waiting, None
            if ids:
                codes = sampler.codes(
                    torch.from_numpy(labels[ids]).to(world.device), torch.tensor(ids, device=world.device),
                    config.guidance, config.sampling, config.seed, config.num_tokens,
                )
                waiting = ids, queue.after_now(sampler.pixels, codes)
            if previous:
                yield previous[0], previous[1]()
                bar.update(len(previous[0]))


def _pack(
    packed: Path, paths: list[Path], drawn: list[int], from_png: bool, size: tuple[int, int], ranks: int,
    about: dict[str, Any],
) -> None:
    """Write the `.npz`: new images come from the ranks' parts, earlier ones from PNGs or from the `.npz` before."""
    fresh = set(drawn)
    new = (image for block in npz.read_parts(packed, size, ranks) for image in block)
    if from_png:
        old = (np.asarray(read_image(path)) for index, path in enumerate(paths) if index not in fresh)
    else:
        old = (image for block in npz.stream(packed, npz.BLOCK) for image in block)
    writer = NpzWriter(packed, len(paths), size, about)
    for index in range(len(paths)):
        writer.write(next(new if index in fresh else old)[None])
    writer.close()
    npz.remove_parts(packed, ranks)


def _wait(written: list[Future]) -> None:
    """Wait for all files. Raises: the first exception of a writer."""
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
    """Delete the files that `sample` wrote in and beside `folder`, and no others."""
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
    """`<index>.png`; with chosen classes `class_<id>_<name>/<name>_<number within the class>.png`."""
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
                f"{str(folder)!r} contains samples of other settings ({', '.join(differing)} differ); "
                "choose another --sample-dir or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1))


def main() -> None:
    settings = config.parse(SampleConfig, aliases=SAMPLE_FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
