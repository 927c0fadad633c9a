"""The embedded pictures: 13 real photographs that come inside scikit-image and scikit-learn, cut into an image folder.

    python -m studies.photos --out data/photos

writes `<out>/{train,val}/<photo>/00000.png ...`, `<out>/LICENSES.md` and `<out>/photos.json` (what was asked for).
Training crops come from the right three quarters of each photo and validation crops from its left quarter, so no
pixel is in both. The result depends only on the options; asked again with the same ones, the job does nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import config
from common.config import MISSING, opt
from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

TRAINING_SHARE = 0.75
"""The share of each photo's width, from the right, that training crops come from; validation has the rest.

The left quarter, because it shows the photo's subject in all thirteen: a linear classifier on EfficientNet-Lite2
features that is trained on the training crops names the validation crops 99% right, and 88% with the sides swapped.
"""
FLAT = 4.0
"""Crops whose pixels deviate less than this (of 255) are drawn again: nothing to see, and their PSNR is unbounded."""
VERSION = 1
"""Goes up when the same options would give other crops."""


@dataclass(frozen=True)
class Photo:
    """One photograph: its class name, where its package keeps it, and whom to thank."""

    name: str
    package: str
    file: str
    title: str
    credit: str
    licence: str


PHOTOS = (
    Photo("astronaut", "skimage", "data/astronaut.png", "The astronaut Eileen Collins", "NASA", "public domain"),
    Photo("brick", "skimage", "data/brick.png", "A brick wall (grey)", "CC0Textures, Bricks25", "CC0"),
    Photo("cat", "skimage", "data/chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Photo(
        "coffee", "skimage", "data/coffee.png",
        "A cup of coffee", "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0",
    ),
    Photo(
        "coins", "skimage", "data/coins.png",
        "Greek coins from Pompeii (grey)", "Brooklyn Museum", "no known restrictions",
    ),
    Photo("dahlia", "sklearn", "datasets/images/flower.jpg", "A flower", "vultilion, Flickr 6056698931", "CC BY 2.0"),
    Photo(
        "galaxies", "skimage", "data/hubble_deep_field.jpg",
        "The Hubble eXtreme Deep Field", "NASA, HubbleSite", "public domain",
    ),
    Photo("grass", "skimage", "data/grass.png", "Grass (grey)", "linolafett, DeviantArt", "CC0"),
    Photo(
        "motorcycle", "skimage", "data/motorcycle_left.png",
        "A motorcycle in a garage", "Middlebury 2014 stereo benchmark, Scharstein et al.", "not stated",
    ),
    Photo(
        "pavilion", "sklearn", "datasets/images/china.jpg",
        "A Chinese pavilion above a lake", "danielbuechele, Flickr 6061409035", "CC BY 2.0",
    ),
    Photo("retina", "skimage", "data/retina.jpg", "A human retina", "Mikael Häggström, Wikimedia Commons", "CC0"),
    Photo("rocket", "skimage", "data/rocket.jpg", "Falcon 9 with DSCOVR on the launch pad", "SpaceX", "public domain"),
    Photo(
        "tissue", "skimage", "data/ihc.png",
        "Stained colon tissue", "Center for Microscopy and Molecular Imaging", "no known restrictions",
    ),
)
"""The class names, in the order of their labels."""


@dataclass
class PhotosConfig:
    out: str = opt(MISSING, "folder to make; it must not exist, or hold the same crops already")
    image_size: int = opt(64, "side of the crops as written, in pixels")
    train_per_photo: int = opt(400, "training crops of each photograph")
    val_per_photo: int = opt(40, "validation crops of each photograph")
    min_crop: int = opt(64, "smallest side that is cut out, before resizing")
    max_crop: int = opt(256, "largest side; smaller where a photo's validation strip is narrower")
    seed: int = opt(0, "which crops")


def photo_path(photo: Photo) -> Path:
    """Where the installed package keeps the file. The package itself is not imported.

    Raises: UserError when the package or the file is missing.
    """
    spec = importlib.util.find_spec(photo.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0], photo.file) if folders else None
    if path is None or not path.is_file():
        raise UserError(
            f"the photograph {photo.name!r} ({photo.package}/{photo.file}) is not installed; "
            "run bash env_install.sh, which installs the versions that ship it"
        )
    return path


def strip(split: str, width: int) -> tuple[int, int]:
    """The columns [left, right) of a photo of this width that belong to `split` (train or val)."""
    border = width - int(width * TRAINING_SHARE)
    return (border, width) if split == "train" else (0, border)


def largest_crop(size: tuple[int, int], limit: int) -> int:
    """The largest side cut from a photo (width, height), in both splits: it fits the narrower strip."""
    left, right = strip("val", size[0])
    return min(limit, size[1], right - left)


def draw_box(rng: np.random.Generator, split: str, size: tuple[int, int], sides: tuple[int, int]) -> tuple[int, ...]:
    """One square crop (left, top, right, bottom) inside the strip of `split`; its side is log-uniform in `sides`."""
    left, right = strip(split, size[0])
    side = min(sides[1], int(math.exp(rng.uniform(math.log(sides[0]), math.log(sides[1] + 1)))))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, size[1] - side + 1))
    return x, y, x + side, y + side


def crops(photo: Photo, split: str, count: int, options: PhotosConfig) -> list[Image.Image]:
    """The first `count` crops of one photo, each `image_size` square. A longer list begins with a shorter one.

    Raises: UserError when even the largest crop of this photo is smaller than `min_crop`.
    """
    import numpy as np
    from PIL import Image

    with Image.open(photo_path(photo)) as opened:
        picture = opened.convert("RGB")
    sides = (options.min_crop, largest_crop(picture.size, options.max_crop))
    if sides[0] > sides[1]:
        raise UserError(f"min_crop is {sides[0]}, but {photo.name} has room for {sides[1]} only; lower --min-crop")
    stream = int.from_bytes(hashlib.sha256(f"{photo.name}/{split}".encode()).digest()[:8], "big")
    rng = np.random.default_rng([options.seed, stream])
    kept: list[Image.Image] = []
    while len(kept) < count:
        box = draw_box(rng, split, picture.size, sides)
        # Cut first: resize(box=...) would let the filter reach over the edge of the box, and so over the border.
        crop = picture.crop(box).resize((options.image_size, options.image_size), Image.Resampling.BICUBIC)
        if np.asarray(crop).std() >= FLAT:
            kept.append(crop)
    return kept


def credits() -> str:
    """Titles, credits and licences as a Markdown table, one row per photograph."""
    rows = [f"| {p.name} | {p.title} | {p.credit} | {p.licence} | {p.package}/{p.file} |" for p in PHOTOS]
    return "\n".join(["| class | picture | credit | licence | file |", "|-|-|-|-|-|", *rows, ""])


def signature(options: PhotosConfig) -> dict[str, Any]:
    """What the crops depend on: the options, the photographs' bytes and this file's VERSION."""
    digest = hashlib.sha256(b"".join(photo_path(photo).read_bytes() for photo in PHOTOS)).hexdigest()
    asked = {key: value for key, value in dataclasses.asdict(options).items() if key != "out"}
    return {**asked, "photos_sha256": digest, "version": VERSION}


def make(options: PhotosConfig) -> bool:
    """Write the image folder, whole or not at all; False when it is there already.

    Raises: UserError when `out` holds something else.
    """
    out = Path(options.out)
    asked = signature(options)
    if _is_done(out, asked):
        return False
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        for split, count in (("train", options.train_per_photo), ("val", options.val_per_photo)):
            for photo in PHOTOS:
                folder = partial / split / photo.name
                folder.mkdir(parents=True)
                for index, crop in enumerate(crops(photo, split, count, options)):
                    crop.save(folder / f"{index:05d}.png", compress_level=1)
        (partial / "LICENSES.md").write_text(f"# The photographs these crops were cut from\n\n{credits()}")
        (partial / "photos.json").write_text(json.dumps(asked, indent=1) + "\n")
        try:
            partial.rename(out)
        except OSError:
            if not _is_done(out, asked):  # another process may have made the same folder meanwhile
                raise
            return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_done(out: Path, asked: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "photos.json").read_text())
    except (OSError, ValueError):
        found = None
    if found == asked:
        return True
    what = "crops made with other options" if found else "other files"
    raise UserError(f"{str(out)!r} holds {what}; pass another folder with --out, or remove this one")


def main() -> None:
    options = config.parse(PhotosConfig, about=__doc__)
    made = make(options)
    total = len(PHOTOS) * (options.train_per_photo + options.val_per_photo)
    print(f"{options.out}: {total} crops of {len(PHOTOS)} photographs{'' if made else ', already there'}")


if __name__ == "__main__":
    config.main(main)
