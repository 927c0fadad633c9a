"""Make pairs for post-training: `python -m autoregressive.make_pairs --gpt-ckpt RUN --vq-ckpt RUN --data-path DIR
--out PAIRS --sigma 0.7 --cfg-scale 2.0`. The generator replaces 1 - sigma of each image's codes, given the others. An
interrupted job continues with the same command, on any number of processes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autoregressive.config import PairsConfig, for_device
from autoregressive.generate import check_num_tokens
from autoregressive.paper_flags import PAIRS_FLAGS
from autoregressive.released import class_names
from autoregressive.sample import ImageSampler
from common import checkpoint, config, dist
from common.codes import hash_names
from common.containers import open_images
from common.data import ImageFolder, batches
from common.errors import UserError
from common.images import from_pixels
from common.numerics import numpy_generator
from common.pairs import PairWriter
from tokenizer.frozen_codes import codes_fingerprint


def _bernoulli(sigma: float, num_tokens: int) -> np.ndarray:
    return np.full(num_tokens, sigma)


def _prefix(sigma: float, num_tokens: int) -> np.ndarray:
    return (np.arange(num_tokens) < math.ceil(sigma * num_tokens)).astype(np.float64)


def _schedule(sigma: float, num_tokens: int) -> np.ndarray:
    """Falls linearly from min(1, 2 sigma); the mean is sigma."""
    first = min(1.0, 2 * sigma)
    return np.linspace(first, 2 * sigma - first, num_tokens)


POLICIES: dict[str, Callable[[float, int], np.ndarray]] = {
    "bernoulli": _bernoulli, "prefix": _prefix, "schedule": _schedule,
}  # fmt: skip
"""Policy -> (sigma, L) -> the probability of keeping each of L codes."""


def draw_keep(policy: str, sigma: float, num_tokens: int, seed: int, ids: np.ndarray) -> np.ndarray:
    """bool (n, num_tokens) for images `ids` (n,) int64; a row depends on the seed and its id alone.

    Raises: UserError for an unknown policy or a sigma outside [0, 1].
    """
    if policy not in POLICIES:
        raise UserError(f"--keep got {policy!r}; known: {', '.join(POLICIES)}")
    if not 0 <= sigma <= 1:
        raise UserError(f"--sigma is {sigma}; expected a share of kept codes in [0, 1]")
    probabilities = POLICIES[policy](sigma, num_tokens)
    rows = [numpy_generator(seed, "keep", int(i)).random(num_tokens) for i in ids]
    return np.stack(rows) < probabilities


def run(config: PairsConfig) -> Path:
    """The job behind `python -m autoregressive.make_pairs`: returns the pair set's path."""
    world = dist.init(config.device)
    config = for_device(config, world.device)
    sampler = ImageSampler.load(config, world.device)
    known = class_names(config.gpt_ckpt, sampler.generator.num_classes)
    folder = open_images(config.data_path, sampler.tokenizer.image_size, classes=known)
    _check(config, sampler)
    chosen = choose(len(folder), config.num_samples, config.seed)
    names = folder.names()
    writer = PairWriter(config.out, _meta(config, sampler, folder, [names[index] for index in chosen]))
    todo = dist.claim(writer, world)
    total = sum(len(writer.samples(number)) for number in todo)
    with tqdm(total=total, desc="make pairs", unit="image", disable=not world.is_main, dynamic_ncols=True) as bar:
        for number in todo:
            indices = chosen[writer.samples(number).start : writer.samples(number).stop]
            paths = [names[index] for index in indices]
            codes, keep = _draw(config, sampler, folder, indices, image_ids(paths), bar)
            writer.write(number, codes, [folder.labels[index] for index in indices], paths, keep)
    dist.barrier()
    if world.is_main:
        print(f"{writer.path}: {len(chosen)} pairs, sigma {config.sigma:g} ({config.keep})")
    dist.close()
    return writer.path


def choose(count: int, num_samples: int | None, seed: int) -> list[int]:
    """Numbers of the images, drawn without repetition; a shorter draw is a prefix of a longer one.

    Raises: UserError when there are fewer images.
    """
    if num_samples is None or num_samples < 0:
        num_samples = count
    if not 1 <= num_samples <= count:
        raise UserError(f"--num-samples is {num_samples}; the folder has {count} images")
    return numpy_generator(seed, "images").permutation(count)[:num_samples].tolist()


def image_ids(paths: list[str]) -> np.ndarray:
    """int64 (n,) from the paths: what is drawn for an image depends on its name, not on the other images."""
    digests = [hashlib.sha256(path.encode()).digest()[:8] for path in paths]
    return np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=np.int64)


def _draw(
    config: PairsConfig, sampler: ImageSampler, folder: ImageFolder, indices: list[int], ids: np.ndarray, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and kept places, (n, L) each, of one shard. Batches begin at the shard's first sample, so that a resumed
    job computes in the same shapes and rounds alike."""
    length, device = sampler.generator.num_tokens, next(sampler.generator.parameters()).device
    keep = draw_keep(config.keep, config.sigma, length, config.seed, ids)
    rows, at = [], 0
    for batch in batches(folder, indices, config.batch_size, config.workers):
        mine = slice(at, at := at + len(batch["label"]))
        kept: dict[str, Tensor] = {}
        if config.sigma:
            kept["forced"] = sampler.tokenizer.encode(from_pixels(batch["pixels"].to(device)))[:, :length]
            kept["keep"] = torch.from_numpy(keep[mine]).to(device)
        rows.append(sampler.codes(
            batch["label"].to(device), torch.from_numpy(ids[mine]).to(device), config.guidance, config.sampling,
            config.seed, **kept,
        ).cpu().numpy())
        bar.update(len(batch["label"]))
    return np.concatenate(rows), keep


def _check(config: PairsConfig, sampler: ImageSampler) -> None:
    """Wrong settings must not claim the folder."""
    config.guidance.scales(check_num_tokens(sampler.generator, None))
    draw_keep(config.keep, config.sigma, 1, config.seed, np.zeros(1, np.int64))


def _meta(config: PairsConfig, sampler: ImageSampler, folder: ImageFolder, names: list[str]) -> dict[str, Any]:
    """Everything the pairs depend on, and what their readers need."""
    tokenizer = sampler.tokenizer
    return {
        "num_samples": len(names), "shard": config.shard, "codebook_size": tokenizer.codebook_size,
        "num_tokens": sampler.generator.num_tokens, "image_size": tokenizer.image_size, "classes": folder.classes,
        "crop": "centre, not mirrored", "images": hash_names(names), "root": str(config.data_path),
        "sigma": config.sigma, "keep": config.keep, "seed": config.seed, "precision": config.precision,
        "batch_size": config.batch_size, "guidance": dataclasses.asdict(config.guidance),
        "sampling": dataclasses.asdict(config.sampling),
        "vq_ckpt": str(config.vq_ckpt), "vq_weights": config.vq_weights, "codes_of": codes_fingerprint(tokenizer),
        "gpt_ckpt": str(config.gpt_ckpt), "gpt_weights": config.gpt_weights,
        "generator": checkpoint.fingerprint(checkpoint.resolve_folder(config.gpt_ckpt)),
    }


def main() -> None:
    settings = config.parse(PairsConfig, aliases=PAIRS_FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
