"""Write the reference images of an evaluation: centre crops as PNG, and shuffled into one `.npz`.

    bash scripts/val.sh --data-path DIR --sample-dir DIR

makes `<sample-dir>/val_<dataset>/000000.png ...` in dataset order and `<sample-dir>/val_<dataset>.npz` in an order
shuffled by the seed, because the inception score depends on the order. Pass the `.npz` on as --gt-npz-path, and
`<sample-dir>/val_<dataset>` as the --data-path of reconstruction. A reference of validation images is for
reconstructions; generated samples are measured against training images: --split train writes `train_<dataset>`.
The file says which it is, and the evaluators refuse the other kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import config
from common.config import MISSING, opt


@dataclass
class ReferenceConfig:
    data_path: str = opt(MISSING, "image folder")
    sample_dir: str = opt("results/reconstructions", "where to write")
    split: str = opt("val", "what data_path holds: val (reference of reconstructions) | train (of generated samples)")
    dataset: str = opt("imagenet", "only names the output: <split>_<dataset>")
    image_size: int = opt(256, "side of the centre crops, pixels")
    num_images: int | None = opt(None, "the first so many images of the folder; null = all")
    global_seed: int = opt(0, "seed of the order in the .npz")
    per_proc_batch_size: int = opt(32, "images read at a time")
    num_workers: int = opt(0, "loader processes per rank")


def main() -> None:
    settings = config.parse(ReferenceConfig, about=__doc__)
    from evaluations.reference_job import run

    run(settings)


if __name__ == "__main__":
    config.main(main)
