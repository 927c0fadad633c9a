"""What the evaluation jobs share: options, the pass over the images, reuse of results, and distances of image sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import tokenizer as tokenizers
from common import dist, npz, weight_choice
from common.config import MISSING, opt
from common.containers import open_images
from common.data import ImageFolder, batches
from common.dist import World
from common.errors import UserError
from common.options import IMAGE_SIZE, WEIGHTS
from evaluations import record
from evaluations.c2i import scores
from evaluations.metrics import FEATURES
from evaluations.metrics.features import Extractor
from evaluations.metrics.frechet import Gaussian, Moments, frechet_distance
from tokenizer.model import Tokenizer


@dataclass
class DecodingConfig:
    """A tokenizer, the images it encodes, the token counts it decodes, and the distances that are measured."""

    vq_ckpt: str = opt(MISSING, "tokenizer: a run, or one of its checkpoints")
    model_config: str | None = opt(None, "YAML that the checkpoint must agree with; null = trust the checkpoint")
    weights: str = opt("ema", "ema falls back to model where a run kept no average", WEIGHTS)
    data_path: str = opt(MISSING, "image folder; centre crops are taken")
    image_size: int | None = opt(None, IMAGE_SIZE)
    num_images: int | None = opt(None, "only the first num_images of the folder; null = all")
    sample_dir: str = opt(MISSING, "folder for the results")
    num_tokens: list[int] = opt([], "decode the first k tokens, for each k in this list; [] = all tokens")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    gt_npz_path: str | None = opt(None, "reference .npz for FID and its companions; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    per_proc_batch_size: int = opt(32, "images at a time, per process")
    num_workers: int = opt(0, "loader processes per rank")
    device: str = opt("auto", "auto | cpu | cuda")


# ------------------------------------------------------------------------------------------ models and images


def load_tokenizer(
    path: str, weights: str, world: World, config: str | None = None, image_size: int | None = None,
    flag: str = "weights",
) -> Tokenizer:
    """`tokenizer.load`, after printing which weights are used; `flag` is the job's option for them."""
    weight_choice.announce("tokenizer", path, weights, flag)
    return tokenizers.load(path, weights, world.device, config, image_size)


def load_extractor(name: str | None, device: torch.device) -> Extractor | None:
    """The feature extractor of a Frechet distance; None without one. Raises: UserError for an unknown name."""
    if name and name not in FEATURES:
        raise UserError(f"--frechet got {name!r}; expected {', '.join(FEATURES)}")
    return FEATURES[name](device=device) if name else None


def open_crops(path: str, image_size: int, num_images: int | None) -> tuple[ImageFolder, int]:
    """The centre crops of a folder, and how many of them a job uses."""
    dataset = open_images(path, image_size)
    return dataset, min(len(dataset), num_images or len(dataset))


def spread(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spread."""
    return [round((i + 0.5) * total / count - 0.5) for i in range(count)]


def visit(
    dataset: Dataset, indices: Sequence[int], title: str, batch_size: int, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Batches of `indices` in order, with a progress bar on the main process."""
    with tqdm(total=len(indices), desc=title, unit="image", disable=dist.rank() > 0, dynamic_ncols=True) as bar:
        for batch in batches(dataset, indices, batch_size, workers):
            yield batch
            bar.update(len(batch["label"]))


# ------------------------------------------------------------------------------------------ questions and answers


def question(config: Any, job: str, version: int, exempt: Mapping[str, str], **sources: Any) -> dict[str, Any]:
    """What a result depends on: every option but the exempt ones, and the contents of the files (`sources`).

    Args:
        version: of the job's method; goes up when the same options would give other figures.
        exempt: option -> the reason why figures do not depend on it.
    """
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in exempt}
    return {"job": job, "version": version, **asked, **sources}


def reference_sources(config: Any, samples: str, kind: str | None) -> dict[str, str]:
    """What FID and its companions depend on, for a config with the options of `gt_npz_path`; see `scores.question`."""
    if not config.gt_npz_path:
        return {}
    return scores.question(
        config.gt_npz_path, samples, kind, config.engine, config.eval_python_path, config.inception_path
    )


Measured = tuple[dict[str, Any], Iterable[str], record.Protocol | None]
"""Results, flags and protocol, as `record.write` takes them."""


def answer(
    path: str | Path, question: dict[str, Any], world: World, measure: Callable[[], Measured | None]
) -> dict[str, Any]:
    """The record in `path` if it answers exactly `question`; else that of `measure()`, written by the main process.

    Every rank calls it and gets the record. `measure` runs on every rank; only the main one's result counts.
    """
    found = dist.gather_objects(record.read_current(path, question))[0]
    if found is None:
        measured = measure()
        written = record.write(path, question, *measured) if world.is_main else None
        found = dist.gather_objects(written)[0]
    elif world.is_main:
        print(f"{path}: measured before; delete the file to measure again")
    return found


# ------------------------------------------------------------------------------------------ sets of images


class ImageSets:
    """Sets of images, each compared with the originals in an extractor's features and with a reference `.npz`.

    Every rank adds its images; `gather` merges all ranks, then the main process asks for `figures`.

    Args:
        files: key of a set -> the `.npz` of its images.
        packed: whether the images are written to these files.
    """

    def __init__(
        self, world: World, files: Mapping[Hashable, Path], extractor: Extractor | None, packed: bool
    ) -> None:
        self.world, self.files, self.extractor = world, files, extractor
        self.originals, self.moments = Moments(), {key: Moments() for key in files}
        self._parts = {key: npz.PartWriter(path, world.rank) for key, path in files.items()} if packed else {}
        self._scores: scores.Scores | None = None
        self.features: dict[str, record.Features] = {}
        self.flags: list[str] = []

    def add_originals(self, images: Tensor) -> None:
        """images (B,3,H,W) in [-1,1]."""
        if self.extractor is not None:
            self.originals.update(self.extractor(images)[0].cpu().numpy())

    def add(self, key: Hashable, images: Tensor, pixels: np.ndarray | None = None) -> None:
        """images (B,3,H,W) in [-1,1], and the same as uint8 (B,H,W,3) for the `.npz`."""
        if self.extractor is not None:
            self.moments[key].update(self.extractor(images)[0].cpu().numpy())
        if self._parts:
            self._parts[key].write(pixels)

    def gather(self) -> None:
        """Finish this rank's files and merge the statistics of all ranks; collective."""
        for part in self._parts.values():
            part.close()
        gathered = dist.gather_objects((self.originals, self.moments))
        dist.barrier()
        for originals, moments in gathered[1:]:
            self.originals.merge(originals)
            for key, mine in self.moments.items():
                mine.merge(moments[key])

    def compare_with(self, config: Any, engine: str) -> None:
        """Measure FID and its companions as well, against `config.gt_npz_path`."""
        self._scores = scores.Scores(
            config.gt_npz_path, engine, config.eval_python_path, config.inception_path, self.world.device
        )

    def distance(self, key: Hashable) -> float:
        """Frechet distance of a set to the originals."""
        return frechet_distance(self._original, self.moments[key].gaussian())

    @cached_property
    def _original(self) -> Gaussian:
        return self.originals.gaussian()

    def pack(self, key: Hashable, count: int, image_size: int, about: Mapping[str, Any]) -> dict[str, float | None]:
        """Join the parts of a set into its `.npz`; returns its figures against the reference, if there is one."""
        npz.join(self.files[key], count, (image_size, image_size), self.world.size, about)
        if self._scores is None:
            return {}
        figures, self.features["inception"], flags = self._scores(self.files[key])
        self.flags += flags
        return figures


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Rows of uint8 images (H,W,3) of one size -> one uint8 image on white. Rows may differ in length."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas
