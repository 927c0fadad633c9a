"""Pack images into tar shards, and unpack them: `python -m common.shards --data-path DIR --out SHARDS [--unpack]`.

    <out>/
        000000.tar ...   WebDataset's layout, two members per image: `<key>.<suffix>` and `<key>.cls` (its label)
        index.json       class names

WebDataset reads shards as a stream that every process shuffles in a buffer of its own. Here images are read by number
(`common.containers`), so the order is the same for any number of processes and after a resume.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common import config
from common.config import MISSING, opt
from common.containers import open_images
from common.containers.tar import key, quoted
from common.errors import UserError


def pack(root: str | Path, out: str | Path, shard_mb: float = 500.0) -> Path:
    """Images as shards of about `shard_mb` million bytes each. The image files go in unchanged.

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
    with ShardWriter(pattern, format="PAX_FORMAT", **about) as writer:
        for index, name in enumerate(tqdm(keys, desc="pack", unit="image", dynamic_ncols=True)):
            suffix, label = names[index][len(name) + 1 :], str(images.labels[index])
            writer.write({"__key__": name, suffix: images.content(index), "cls": label.encode()})
    (partial / "index.json").write_text(json.dumps({"classes": images.classes}, indent=1) + "\n")
    partial.rename(out)
    return out


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
    out: str = opt(MISSING, "folder to write")
    shard_mb: float = opt(500.0, "size of a shard, million bytes")
    unpack: bool = opt(False, "write an image folder instead of shards")


def main() -> None:
    options = config.parse(PackConfig, about=__doc__)
    written = unpack(options.data_path, options.out) if options.unpack else pack(
        options.data_path, options.out, options.shard_mb
    )
    print(f"written: {written}")


if __name__ == "__main__":
    config.main(main)
