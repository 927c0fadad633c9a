"""Image sets in container files, read in place: tar (WebDataset and others), zip, and parquet of the Hugging Face hub.

`open_images` takes an image folder, a container file, a folder of them, a pattern (`train-*.tar`, `{0000..0009}.tar`),
or a folder within a container (`imagenet.zip/ILSVRC/Data/CLS-LOC/train`). The content decides what a file is.
"""

from __future__ import annotations

import glob
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from common import dist
from common.classes import Listing, is_hidden
from common.containers import parquet, tar, zip
from common.containers.index import check_splits, load_index
from common.data import ImageFolder
from common.errors import UserError
from common.images import IMAGE_SUFFIXES, read_image

__all__ = ["ImageContainers", "open_images"]

KINDS = {"tar": tar, "zip": zip, "parquet": parquet}
SUFFIXES = (".tar", ".zip", ".parquet")
MOST_OPEN = 64  # files at a time in each process


def open_images(root: str | Path, *options: Any, **more: Any) -> ImageFolder:
    """An image folder or images in containers, with the options of `ImageFolder`; prints what was found.

    Raises: UserError as `ImageFolder`, and when a container is damaged, hostile or of another kind.
    """
    dataset = (ImageContainers if find_containers(str(root))[0] else ImageFolder)(root, *options, **more)
    if dist.rank() == 0:
        _print_once(dataset.description)
    return dataset


@cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)


def find_containers(root: str) -> tuple[list[Path], str]:
    """The container files that `root` names, none for an image folder, and the folder within the container."""
    if any(character in root for character in "*?{") and not os.path.exists(root):
        from braceexpand import braceexpand

        files = [Path(name) for pattern in braceexpand(root) for name in sorted(glob.glob(pattern))]
        if not files:
            raise UserError(f"no file matches {root!r}; pass --data-path a folder, a container file or a pattern")
        return files, ""
    path = Path(root)
    if path.is_dir():
        found = _containers_in(path)
        if found and (folder := _image_folder_in(path)):
            raise UserError(f"{root!r} holds {found[0].name!r} and images in {folder!r}; move one of them elsewhere")
        return found or (_containers_in(path / "data") if (path / "data").is_dir() else []), ""
    inner: list[str] = []
    while not path.exists() and path != path.parent:
        path, inner = path.parent, [path.name, *inner]
    return ([path], "/".join(inner)) if path.is_file() else ([], "")


def _containers_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))


def _image_folder_in(folder: Path) -> str | None:
    for path in folder.iterdir():
        names = os.listdir(path) if path.is_dir() and not is_hidden(path.name) else []
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            return path.name
    return None


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar" or path.suffix == ".tar":
        return "tar"
    found = {b"PK\3\4": "zip", b"PAR1": "parquet"}.get(start[:4])
    if found is None:
        raise UserError(
            f"{str(path)!r} is not an image set known here; expected an image folder, or an uncompressed .tar, a .zip "
            "or a .parquet file (of a file that git-lfs has not fetched: git lfs pull)"
        )
    return found


class ImageContainers(ImageFolder):
    """`ImageFolder` over container files: the same options and items."""

    def _list(self) -> Listing:
        self._files, inner = find_containers(str(self.root))
        check_splits(self._files, str(self.root))
        kinds = sorted({_kind(path) for path in self._files})
        if len(kinds) > 1:
            raise UserError(f"{str(self.root)!r} holds {' and '.join(kinds)} files; pass the files of one kind")
        container = KINDS[kinds[0]]
        index = load_index(container.scan, self._files, str(self.root), inner)
        self._rows, self._open, self._bytes = index.rows, {}, container.read
        index.listing.kind = f"{len(self._files)} {kinds[0]} file{'s' if len(self._files) > 1 else ''}, "
        return index.listing

    def content(self, index: int) -> bytes:
        number, *where = self._rows[index].tolist()
        try:
            return self._bytes(self._handle(number), self._files[number], *where)
        except Exception as error:  # zlib, pyarrow and the file system have their own kinds of exceptions
            reason = " ".join(str(error).split())
            raise UserError(
                f"image {self.name(index)!r} cannot be read ({reason}); download or copy this file again"
            ) from error

    def _handle(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = os.open(self._files[number], os.O_RDONLY)
        return self._open[number]

    def read(self, index: int) -> Image.Image:
        return read_image(self.name(index), self.content(index))

    def name(self, index: int) -> str:
        return f"{self._files[self._rows[index, 0]]}:{self.paths[index]}"

    def names(self) -> list[str]:
        return self.paths

    def files(self, count: int) -> list[str]:
        return [str(self._files[number]) for number in sorted(set(self._rows[:count, 0].tolist()))]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            os.close(handle)
