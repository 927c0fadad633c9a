"""Write the reference images of an evaluation: centre crops as PNG files and, shuffled, as one `.npz`.

    bash scripts/val.sh --data-path DIR --sample-dir DIR

makes `<sample-dir>/val_<dataset>/000000.png ...` in dataset order and `<sample-dir>/val_<dataset>.npz` in an order
shuffled by the seed, because the inception score depends on the order. Pass the `.npz` on as --gt-npz-path, and
`<sample-dir>/val_<dataset>` as the --data-path of reconstruction. A reference of validation images is for
reconstructions; generated samples are measured against training images: --split train writes `train_<dataset>`.
The file says which it contains, and the evaluators refuse the other kind.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common import config, dist
from common.config import MISSING, opt
from common.containers import open_images
from common.data import batches, share
from common.errors import UserError
from common.images import write_png
from common.npz import PartWriter, join
from common.numerics import numpy_generator
from evaluations import record


@dataclass
class ReferenceConfig:
    data_path: str = opt(MISSING, "image folder")
    sample_dir: str = opt("results/reconstructions", "where to write")
    split: str = opt("val", "split in data_path: val (reference of reconstructions) | train (of generated samples)")
    dataset: str = opt("imagenet", "only names the output: <split>_<dataset>")
    image_size: int = opt(256, "side of the centre crops, pixels")
    num_images: int | None = opt(None, "the first so many images of the folder; null = all")
    global_seed: int = opt(0, "seed of the order in the .npz")
    per_proc_batch_size: int = opt(32, "images read at a time")
    num_workers: int = opt(0, "loader processes per rank")


def run(config: ReferenceConfig) -> Path:
    """Write the PNG folder and the `.npz`; returns the path of the `.npz`.

    Raises: UserError for another split than val or train.
    """
    if config.split not in ("val", "train"):
        raise UserError(f"--split got {config.split!r}; expected val or train")
    world = dist.init("cpu")
    dataset = open_images(config.data_path, config.image_size)
    count = min(len(dataset), config.num_images or len(dataset))
    folder = Path(config.sample_dir) / f"{config.split}_{config.dataset}"
    packed = folder.with_suffix(".npz")
    folder.mkdir(parents=True, exist_ok=True)
    # Images are read in the order of the `.npz`, so that each rank writes its part of it directly.
    order = numpy_generator(config.global_seed, "order").permutation(count)
    mine = [int(order[at]) for at in share(count, world.rank, world.size)]
    part = PartWriter(packed, world.rank)
    bar = tqdm(total=len(mine), desc="centre crops", unit="image", disable=not world.is_main, dynamic_ncols=True)
    for batch in batches(dataset, mine, config.per_proc_batch_size, config.num_workers):
        for index, pixels in zip(batch["index"].tolist(), batch["pixels"].numpy(), strict=True):
            write_png(folder / f"{index:06d}.png", pixels)
        part.write(batch["pixels"].numpy())
        bar.update(len(batch["index"]))
    bar.close()
    part.close()
    dist.barrier()
    if world.is_main:
        for leftover in folder.glob("[0-9]" * 6 + ".png"):  # of an earlier, longer run
            if int(leftover.stem) >= count:
                leftover.unlink()
        about = {"kind": "reference", "split": config.split, "dataset": config.dataset, "seed": config.global_seed}
        join(packed, count, (config.image_size, config.image_size), world.size, about)
        question = {"job": "reference", **dataclasses.asdict(config), "files": record.files_key(dataset.files(count))}
        record.write(packed.with_suffix(".json"), question, {"images": count})
        print(f"{count} reference images: {folder} and {packed}")
    dist.barrier()
    dist.close()
    return packed


def main() -> None:
    settings = config.parse(ReferenceConfig, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
