"""Images per second of reading for training, in random order, from containers and from a folder of the same files.

Plain is the folder. The files are JPEG images of ImageNet's usual size (500 x 375, about 110 kB), read, decoded and
cropped at random to 256 pixels by one process. They come from the page cache, where reading is the cheapest and what a
container costs is the largest part.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from benchmarks.timing import compare
from common.containers import open_images
from common.data import ImageFolder
from common.shards import pack

__all__ = ["reading"]

CLASSES = 8
SHARDS = 2000


def reading(
    _device: torch.device, images: int = 512, each: int = 48, shards: int = SHARDS, repeats: int = 21
) -> dict[str, Any]:
    """Every container beside the folder, in turn.

    Args:
        images: in the set. each: read by one timed call. shards: of one image, in the last case.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        _write_folder(root / "folder", images)
        found = {}
        for case, write in WRITERS.items():
            path = write(root, root / f"{case.replace(' ', '_')}")
            ways = {"plain": _reader(root / "folder", each), "ours": _reader(path, each)}
            found[case] = compare(ways, each, torch.device("cpu"), repeats=repeats)
        before, memory = len(os.listdir("/proc/self/fd")), _resident_mb()
        path = _many_shards(root, shards)
        ways = {"plain": _reader(root / "folder", each), "ours": (ours := _reader(path, each))}
        name = f"{shards} shards"
        found[name] = compare(ways, each, torch.device("cpu"), repeats=repeats)
        for _ in range(shards // each):
            ours()
        found[name] |= {"handles": len(os.listdir("/proc/self/fd")) - before, "memory_mb": _resident_mb() - memory}
    return found


def _reader(path: str | Path, each: int) -> Callable[[], None]:
    dataset = open_images(path, 256, "random", True)
    order = cycle(np.random.default_rng(0).permutation(len(dataset)).tolist())

    def read() -> None:
        for _ in range(each):
            dataset[next(order)]

    return read


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _write_folder(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(images):
        smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(smooth, dtype=np.float32) + rng.normal(0, 15, (375, 500, 3))
        path = folder / f"c{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)


def _zip(root: Path, out: Path, method: int) -> Path:
    with zipfile.ZipFile(out.with_suffix(".zip"), "w", method) as archive:
        for path in sorted((root / "folder").glob("*/*")):
            archive.write(path, path.relative_to(root / "folder"))
    return out.with_suffix(".zip")


def _tar_of_tars(root: Path, out: Path) -> Path:
    with tarfile.open(out.with_suffix(".tar"), "w") as outer:
        for folder in sorted((root / "folder").iterdir()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                archive.add(folder, ".")
            _add(outer, f"{folder.name}.tar", inner.getvalue())
    return out.with_suffix(".tar")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _parquet(root: Path, out: Path, compression: str) -> Path:
    folder = ImageFolder(root / "folder", 1)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [
        {"image": {"bytes": folder.content(at), "path": Path(folder.name(at)).name}, "label": folder.labels[at]}
        for at in range(len(folder))
    ]
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema([("image", image), ("label", pyarrow.int64())]))
    file = out.with_suffix(".parquet")
    pyarrow.parquet.write_table(table, file, row_group_size=100, compression=compression)
    return file


def _many_shards(root: Path, shards: int) -> Path:
    files = sorted((root / "folder").glob("*/*"))
    (root / "many").mkdir()
    for number in range(shards):
        path = files[number % len(files)]
        with tarfile.open(root / f"many/{number:06d}.tar", "w") as archive:
            _add(archive, f"{path.parent.name}/{number}.jpg", path.read_bytes())
    return root / "many"


WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "shards": lambda root, out: pack(root / "folder", out, shard_mb=20),
    "tar of tars": _tar_of_tars,
    "zip, stored": partial(_zip, method=zipfile.ZIP_STORED),
    "zip, deflated": partial(_zip, method=zipfile.ZIP_DEFLATED),
    "parquet, snappy": partial(_parquet, compression="snappy"),
    "parquet, not compressed": partial(_parquet, compression="none"),
    "shards resized to 288": lambda root, out: pack(root / "folder", out, shard_mb=20, resize=288),
}
