"""What `evaluations.reference` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import dist
from common.data import ImageFolder, batches, share
from common.errors import UserError
from common.images import NpzWriter, write_png
from evaluations import record
from evaluations.reference import ReferenceConfig

__all__ = ["run"]


def run(config: ReferenceConfig) -> Path:
    """Write the PNG folder (all ranks) and the `.npz` (rank 0); returns the `.npz`.

    Raises: UserError for another split than val or train.
    """
    if config.split not in ("val", "train"):
        raise UserError(f"--split got {config.split!r}; expected val or train")
    world = dist.init("cpu")
    dataset = ImageFolder(config.data_path, config.image_size, crop="center")
    count = min(len(dataset), config.num_images or len(dataset))
    folder = Path(config.sample_dir) / f"{config.split}_{config.dataset}"
    packed = folder.with_suffix(".npz")
    folder.mkdir(parents=True, exist_ok=True)
    mine = share(count, world.rank, world.size)
    bar = tqdm(total=len(mine), desc="centre crops", unit="image", disable=not world.is_main, dynamic_ncols=True)
    for batch in batches(dataset, mine, config.per_proc_batch_size, config.num_workers):
        for index, pixels in zip(batch["index"].tolist(), batch["pixels"].numpy(), strict=True):
            write_png(folder / f"{index:06d}.png", pixels)
            bar.update()
    bar.close()
    dist.barrier()
    if world.is_main:
        for leftover in folder.glob("[0-9]" * 6 + ".png"):  # of an earlier, longer run
            if int(leftover.stem) >= count:
                leftover.unlink()
        order = np.random.default_rng(config.global_seed).permutation(count)
        about = {"kind": "reference", "split": config.split, "dataset": config.dataset, "seed": config.global_seed}
        writer = NpzWriter(packed, count, (config.image_size, config.image_size), about)
        for index in tqdm(order.tolist(), desc=packed.name, unit="image", dynamic_ncols=True):
            writer.write(np.asarray(Image.open(folder / f"{index:06d}.png"))[None])
        writer.close()
        question = {"job": "reference", **dataclasses.asdict(config), "files": record.files_key(dataset.paths[:count])}
        record.write(packed.with_suffix(".json"), question, {"images": count})
        print(f"{count} reference images: {folder} and {packed}")
    dist.barrier()
    dist.close()
    return packed
