"""Pack images into tar shards, and unpack them: `python -m common.shards --data-path DIR --out SHARDS [--unpack]`.

    <out>/
        000000.tar ...   WebDataset's layout, two members per image: `<key>.<suffix>` and `<key>.cls` (its label)
        index.json       class names
        names.txt        the images' names in order, one a line

`--resize 288` shrinks images whose short side is longer; the others go in unchanged. `--index` writes no shards: it
makes the index of containers before many machines ask for it, and prints what they hold.

WebDataset reads shards as a stream that every process shuffles in a buffer of its own. Here images are read by number
(`common.containers`), so the order is the same for any number of processes and after a resume.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

from common import config
from common.config import MISSING, opt
from common.containers import find_containers, open_images
from common.containers.index import splits
from common.containers.tar import key, quoted
from common.data import ImageFolder
from common.errors import UserError
from common.images import resize_short_side
from common.prefetch import ignore_signals, iterate

QUALITY = 95  # of JPEG files that were resized


class Contents:
    """The files of `images` by number, shrunk to the short side `resize` where they are larger and it is given."""

    def __init__(self, images: ImageFolder, resize: int | None) -> None:
        self.images, self.resize = images, resize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> bytes:
        image = self.images.read(index) if self.resize else None
        if image is None or min(image.size) <= self.resize:
            return self.images.content(index)
        buffer, jpeg = io.BytesIO(), self.images.name(index).lower().endswith((".jpg", ".jpeg"))
        options = {"format": "JPEG", "quality": QUALITY, "subsampling": 0} if jpeg else {"format": "PNG"}
        resize_short_side(image, self.resize).save(buffer, **options)
        return buffer.getvalue()


def pack(
    root: str | Path, out: str | Path, shard_mb: float = 500.0, resize: int | None = None, workers: int = 0
) -> Path:
    """Images as shards of about `shard_mb` million bytes each. Image files that are not resized go in unchanged.

    Raises: UserError when `out` exists, or the names of two images differ in their suffix only.
    """
    from webdataset import ShardWriter

    images, out = open_images(root, 1), Path(out)
    names = [quoted(name) for name in images.names()]
    keys = [key(name) for name in names]
    twice, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} images are called {twice!r} but for their suffix; rename them, shards need one each")
    partial = _start(out)
    # An absolute path: to the library, names with a scheme such as `pipe:` are commands.
    pattern = str(partial.resolve()).replace("%", "%%") + "/%06d.tar"
    about = {"maxcount": 10**9, "maxsize": shard_mb * 1e6, "verbose": 0, "encoder": False, "mtime": 0.0}
    files = iterate(
        DataLoader(Contents(images, resize), batch_size=None, num_workers=workers, worker_init_fn=ignore_signals)
    )
    with ShardWriter(pattern, format="PAX_FORMAT", **about) as writer:
        bar = tqdm(keys, desc="pack", unit="image", dynamic_ncols=True)
        for index, (name, content) in enumerate(zip(bar, files, strict=True)):
            suffix, label = names[index][len(name) + 1 :], str(images.labels[index])
            writer.write({"__key__": name, suffix: content, "cls": label.encode()})
    (partial / "index.json").write_text(json.dumps({"classes": images.classes}, indent=1) + "\n")
    (partial / "names.txt").write_text("".join(f"{name}\n" for name in images.names()))
    partial.rename(out)
    return out


def index(root: str) -> None:
    """Make the index of containers; of every split, where their names belong to several."""
    patterns = splits(find_containers(root)[0])
    if len(patterns) > 1:
        print(f"warning: {root!r} holds the splits {', '.join(sorted(patterns))}; jobs need one of:", file=sys.stderr)
    for pattern in patterns.values() if len(patterns) > 1 else [root]:
        open_images(pattern, 1)


def unpack(root: str | Path, out: str | Path) -> Path:
    """Images as a folder: `<out>/<class>/<name>`, the image files unchanged.

    Raises: UserError when `out` exists, or a name would lead out of it.
    """
    images, out = open_images(root, 1), Path(out)
    partial = _start(out)
    for index, name in enumerate(tqdm(images.names(), desc="unpack", unit="image", dynamic_ncols=True)):
        folder = images.classes[images.labels[index]]
        path = partial / (name if name.startswith(f"{folder}/") else f"{folder}/{name}")
        if not path.resolve().is_relative_to(partial.resolve()):
            raise UserError(f"{name!r} would be written outside {str(out)!r}; do not trust these files")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.content(index))
    partial.rename(out)
    return out


def _start(out: Path) -> Path:
    if out.exists():
        raise UserError(f"{str(out)!r} exists; pass another folder with --out, or remove this one")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


@dataclass
class PackConfig:
    data_path: str = opt(MISSING, "images: a folder or containers (common/containers)")
    out: str | None = opt(None, "folder to write")
    shard_mb: float = opt(500.0, "size of a shard, million bytes")
    resize: int | None = opt(None, "short side that larger images are shrunk to, pixels; null = files unchanged")
    workers: int = opt(0, "processes that read and resize")
    unpack: bool = opt(False, "write an image folder instead of shards")
    index: bool = opt(False, "only make the index of containers and print what they hold")


def main() -> None:
    options = config.parse(PackConfig, about=__doc__)
    if options.index:
        index(options.data_path)
        return
    if not options.out:
        raise UserError("give the folder to write with --out, or make the index only with --index")
    if options.unpack:
        written = unpack(options.data_path, options.out)
    else:
        written = pack(options.data_path, options.out, options.shard_mb, options.resize, options.workers)
    print(f"written: {written}")


if __name__ == "__main__":
    config.main(main)
