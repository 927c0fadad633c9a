"""Image folders and the order they are read in.

The order is a pure function of (seed, position): position p of the endless stream is image
`permutation(seed, p // n)[p % n]`, and its augmentation is drawn from a generator seeded by (seed, p).
So any number of ranks and workers yields the same batches, and a resume starts in the middle of an epoch
without reading earlier items.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.classes import Listing, list_folder, match_classes
from common.codes import hash_names
from common.errors import UserError
from common.images import center_crop, random_crop, read_image
from common.numerics import numpy_generator, torch_generator
from common.prefetch import ignore_signals, iterate

MOST_SKIPPED = 16  # unreadable images in a row; more of them mean that the storage is gone


class ImageFolder(Dataset):
    """Images below a folder; classes are its sorted sub-folders, or one class when images lie directly in it.

    Items are dicts: `pixels` uint8 (H,W,3), `label` int, `index` int; with `bad_images` = "skip" also `asked`, the
    index that was asked for. The next readable image replaces an unreadable one, so the order of a run depends on the
    files and the seed alone.

    Args:
        root: see `common.classes.list_folder`.
        image_size: side of the square crops, in pixels.
        crop: "random" or "center".
        flip: mirror half of the images.
        bad_images: "stop" or "skip", for images that cannot be read.
        classes: names of the classes in the order of their numbers, where a model or other images define them. None:
            the names found here.

    Raises: UserError when the folder is missing or holds no images, or has a class that `classes` does not name.
    """

    def __init__(
        self, root: str | Path, image_size: int, crop: str = "center", flip: bool = False, seed: int = 0,
        bad_images: str = "stop", classes: Sequence[str] | None = None,
    ):  # fmt: skip
        if bad_images not in ("stop", "skip"):
            raise UserError(f"data.bad_images got {bad_images!r}; expected stop or skip")
        if crop not in ("random", "center"):
            raise UserError(f"data.crop got {crop!r}; expected random or center")
        self.root = Path(root)
        self.image_size, self.crop, self.flip, self.seed = image_size, crop, flip, seed
        self.skips_bad = bad_images == "skip"
        listing = self._list()
        self.description = f"{root}: {listing.describe(classes)}"
        self.paths, self.labels, self.classes = listing.paths, listing.labels, listing.classes
        if classes is not None:
            numbers = match_classes(self.classes, classes, str(root))
            self.labels, self.classes = [numbers[label] for label in self.labels], list(classes)

    def _list(self) -> Listing:
        if not self.root.is_dir():
            raise UserError(f"image folder {str(self.root)!r} does not exist; pass --data-path DIR (or data.root=DIR)")
        return list_folder(self.root)

    def content(self, index: int) -> bytes:
        """The file of image number `index`."""
        return Path(self.paths[index]).read_bytes()

    def read(self, index: int) -> Image.Image:
        """Image number `index`, whole, in RGB."""
        return read_image(self.paths[index])

    def name(self, index: int) -> str:
        """Image number `index` in messages."""
        return self.paths[index]

    def names(self) -> list[str]:
        """Every image's path relative to the folder, in order, with slashes."""
        start = len(os.path.join(self.root, ""))
        return [path[start:].replace(os.sep, "/") for path in self.paths]

    def files(self, count: int) -> list[str]:
        """The files that hold the first `count` images, for records of what was read."""
        return self.paths[:count]

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records of its training images."""
        return {"images": len(self), "image_order": hash_names(self.names())}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, np.ndarray | int]:
        asked, position = item if isinstance(item, tuple) else (item, item)
        rng = numpy_generator(self.seed, "augmentation", int(position))
        index, image = self._read(asked)
        if self.crop == "random":
            image = random_crop(image, self.image_size, rng)
        else:
            image = center_crop(image, self.image_size)
        pixels = np.asarray(image)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        found = {"pixels": pixels.copy(), "label": self.labels[index], "index": index}
        return {**found, "asked": asked} if self.skips_bad else found

    def _read(self, asked: int) -> tuple[int, Image.Image]:
        for further in range(MOST_SKIPPED if self.skips_bad else 0):
            index = (asked + further) % len(self.paths)
            try:
                return index, self.read(index)
            except UserError:
                continue  # common.prefetch reports it from the two indices
        return asked, self.read(asked)


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position) for one rank of an endless shuffled stream, from `start_step` on."""

    def __init__(self, count: int, batch_size: int, rank: int, ranks: int, seed: int, start_step: int, steps: int):
        if batch_size < 1 or batch_size % ranks:
            raise UserError(
                f"data.batch_size={batch_size} does not divide over {ranks} processes; expected a multiple of {ranks}"
            )
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.local = rank, batch_size // ranks
        self.start_step, self.steps = start_step, steps

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.steps):
            first = step * self.batch_size + self.rank * self.local
            batch = []
            for position in range(first, first + self.local):
                if position // self.count != epoch:
                    epoch = position // self.count
                    order = numpy_generator(self.seed, "order", epoch).permutation(self.count)
                batch.append((int(order[position % self.count]), position))
            yield batch


def stream(
    dataset: Dataset, batch_size: int, rank: int, ranks: int, seed: int, start_step: int, steps: int, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Batches in the order of `StreamSampler`; numpy items are stacked to tensors.

    Raises: UserError as the dataset does, also from its worker processes.
    """
    sampler = StreamSampler(len(dataset), batch_size, rank, ranks, seed, start_step, steps)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch_generator(seed, "loader"),
    )
    return iterate(loader)


def share(count: int, rank: int, ranks: int) -> range:
    """Rank's contiguous share of `count` items: every item exactly once over all ranks."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def batches(dataset: Dataset, indices: range, batch_size: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """Items of `indices` in order, for jobs that visit every image once."""
    chunks = [list(indices[at : at + batch_size]) for at in range(0, len(indices), batch_size)]
    return iterate(DataLoader(dataset, batch_sampler=chunks, num_workers=workers, worker_init_fn=ignore_signals))
