"""Images in tar shards, WebDataset's layout: two members an image, `<key>.<suffix>` and `<key>.cls` (its label).

    <root>/
        000000.tar ...
        index.json     classes, and every shard's name and size
        index.npy      int64 (images, 4): shard, offset and size of the image's bytes, label
        names.txt      the image members' names, one a line

The WebDataset library writes the shards; it can also read them, but only as a stream that every process shuffles in a
buffer of its own. Here an image's place in the endless stream is a function of seed and position (common/data.py), the
same for any number of processes and after any resume, so images are read by number: the index says where each one lies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import config, dist
from common.classes import Listing
from common.config import MISSING, opt
from common.data import ImageFolder
from common.errors import UserError
from common.images import IMAGE_SUFFIXES, read_image


class ImageShards(ImageFolder):
    """`ImageFolder` over tar shards: the same options and items, image by image.

    Raises: UserError when the index is missing or older than the shards.
    """

    def _list(self) -> Listing:
        try:
            about = json.loads((self.root / "index.json").read_text())
            self._index = np.load(self.root / "index.npy", allow_pickle=False)
            names = (self.root / "names.txt").read_text().splitlines()
        except Exception as error:  # numpy's and JSON's readers raise many kinds for damaged files
            raise UserError(f"{str(self.root)!r} holds tar shards without an index; {_command(self.root)}") from error
        self._shards = [self.root / name for name, _ in about["shards"]]
        sizes = [path.stat().st_size if path.is_file() else None for path in self._shards]
        if sizes != [size for _, size in about["shards"]] or len(self._shards) != len(_tars(self.root)):
            raise UserError(f"the shards in {str(self.root)!r} changed since they were indexed; {_command(self.root)}")
        self._open: dict[int, int] = {}
        return Listing(about["classes"], names, self._index[:, 3].tolist())

    def content(self, index: int) -> bytes:
        """The image's file as it was packed."""
        shard, offset, size = self._index[index, :3].tolist()
        if shard not in self._open:
            self._open[shard] = os.open(self._shards[shard], os.O_RDONLY)
        return os.pread(self._open[shard], size, offset)  # no shared position: loader processes inherit the handle

    def read(self, index: int) -> Image.Image:
        return read_image(self.name(index), self.content(index))

    def name(self, index: int) -> str:
        return f"{self._shards[self._index[index, 0]]}:{self.paths[index]}"

    def names(self) -> list[str]:
        return self.paths

    def files(self, count: int) -> list[str]:
        return [str(self._shards[shard]) for shard in np.unique(self._index[:count, 0])]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            os.close(handle)


def open_images(root: str | Path, *options: Any, **more: Any) -> ImageFolder:
    """`ImageFolder` or, where there are tar shards, `ImageShards`, with the same options; says what was found."""
    dataset = (ImageShards if _tars(Path(root)) else ImageFolder)(root, *options, **more)
    if dist.rank() == 0:
        _print_once(dataset.description)
    return dataset


@cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)


def pack(root: str | Path, out: str | Path, shard_mb: float = 500.0) -> Path:
    """An image folder as shards of about `shard_mb` million bytes each. The image files go in as they are.

    Raises: UserError when `out` exists, or two images' paths are the same up to the first dot of the name.
    """
    from webdataset import ShardWriter

    folder, out = ImageFolder(root, 1), Path(out)
    names = folder.names()
    keys = [_key(name) for name in names]
    twice, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} images are called {twice!r} up to the first dot; rename them, shards need one each")
    partial = _start(out)
    # An absolute path: to the library, names with a scheme such as `pipe:` are more than files.
    pattern = str(partial.resolve()).replace("%", "%%") + "/%06d.tar"
    about = {"maxcount": 10**9, "maxsize": shard_mb * 1e6, "verbose": 0, "encoder": False, "mtime": 0.0}
    with ShardWriter(pattern, format="PAX_FORMAT", **about) as writer:
        for index, key in enumerate(tqdm(keys, desc="pack", unit="image", dynamic_ncols=True)):
            content = Path(folder.paths[index]).read_bytes()
            suffix = names[index][len(key) + 1 :]
            writer.write({"__key__": key, suffix: content, "cls": str(folder.labels[index]).encode()})
    make_index(partial, folder.classes)
    partial.rename(out)
    return out


def unpack(root: str | Path, out: str | Path) -> Path:
    """Shards as an image folder: `<out>/<class>/<name>`, the image files as they were packed.

    Raises: UserError when `out` exists, or a name would lead out of it.
    """
    shards, out = ImageShards(root, 1), Path(out)
    partial = _start(out)
    for index, name in enumerate(tqdm(shards.paths, desc="unpack", unit="image", dynamic_ncols=True)):
        folder = shards.classes[shards.labels[index]]
        path = partial / (name if name.startswith(f"{folder}/") else f"{folder}/{name}")
        if not path.resolve().is_relative_to(partial.resolve()):
            raise UserError(f"shard member {name!r} would be written outside {str(out)!r}; do not trust these shards")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(shards.content(index))
    partial.rename(out)
    return out


def make_index(root: str | Path, classes: list[str] | None = None) -> int:
    """(Re)write the index of a folder of shards from their headers; returns the number of images.

    Without `classes`, those of an earlier index are kept, and shards from elsewhere get their labels' numbers as names.
    Raises: UserError when a shard is damaged or compressed, or an image has no label.
    """
    root = Path(root)
    rows: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    tars = _tars(root)
    if not tars:
        raise UserError(f"{str(root)!r} holds no .tar shards; give a folder of WebDataset shards as --data-path")
    for number, path in enumerate(tqdm(tars, desc="index", unit="shard", dynamic_ncols=True)):
        for name, offset, size, label in _members(path):
            rows.append((number, offset, size, label))
            names.append(name)
    earlier = root / "index.json"
    if classes is None and earlier.is_file():
        classes = json.loads(earlier.read_text())["classes"]
    highest = max((label for *_, label in rows), default=-1)
    if classes is None or highest >= len(classes):
        classes = [str(label) for label in range(highest + 1)]
    np.save(root / "index.npy", np.array(rows, dtype=np.int64).reshape(-1, 4))
    (root / "names.txt").write_text("".join(f"{name}\n" for name in names))
    shards = [[path.name, path.stat().st_size] for path in tars]
    (root / "index.json").write_text(json.dumps({"classes": classes, "shards": shards}, indent=1) + "\n")
    return len(rows)


def _members(path: Path) -> list[tuple[str, int, int, int]]:
    """(name, offset, size, label) of a shard's images, in order."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key = _key(member.name)
                if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                    if key in images:
                        raise UserError(f"shard {str(path)!r} has two images with the key {key!r}; pack them anew")
                    images[key] = (member.name, member.offset_data, member.size)
                elif member.isfile() and member.name == f"{key}.cls":
                    labels[key] = int(archive.extractfile(member).read())
    except (tarfile.TarError, ValueError, OSError) as error:
        raise UserError(f"shard {str(path)!r} cannot be read ({error}); expected an uncompressed .tar file") from error
    unlabelled = next((key for key in images if key not in labels), None)
    if unlabelled is not None:
        raise UserError(f"shard {str(path)!r}: image {unlabelled!r} has no {unlabelled}.cls with its label beside it")
    return [(*image, labels[key]) for key, image in images.items()]


def _key(name: str) -> str:
    """A member's name up to the first dot behind the last slash, which is WebDataset's rule."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _tars(root: Path) -> list[Path]:
    return sorted(root.glob("*.tar"))


def _start(out: Path) -> Path:
    if out.exists():
        raise UserError(f"{str(out)!r} exists; pass another folder with --out, or remove this one")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _command(root: Path) -> str:
    return f"run: python -m common.shards --index --data-path {root}"


@dataclass
class PackConfig:
    data_path: str = opt(MISSING, "image folder; with unpack or index a folder of shards")
    out: str | None = opt(None, "folder to write; not with index")
    shard_mb: float = opt(500.0, "size of a shard, million bytes")
    unpack: bool = opt(False, "shards -> image folder")
    index: bool = opt(False, "write the index of shards from elsewhere, in place")


def main() -> None:
    options = config.parse(PackConfig, about=__doc__)
    if options.index == bool(options.out) or (options.index and options.unpack):
        raise UserError("give --out with a folder to write, or --index alone")
    from common import shards

    if options.index:
        print(f"{options.data_path}: {shards.make_index(options.data_path)} images indexed")
    elif options.unpack:
        print(f"written: {shards.unpack(options.data_path, options.out)}")
    else:
        print(f"written: {shards.pack(options.data_path, options.out, options.shard_mb)}")


if __name__ == "__main__":
    config.main(main)
