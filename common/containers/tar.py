"""Tar files: WebDataset shards, tars of an image folder, and tars of one tar per class (ILSVRC2012_img_train.tar)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from common.containers.index import Member, read_at
from common.errors import UserError
from common.images import IMAGE_SUFFIXES

__all__ = ["key", "quoted", "read", "scan"]

BLOCK = 512
LONGEST_LABEL = 1 << 20  # bytes; larger .json files are not labels


def scan(path: Path, bar: tqdm) -> tuple[list[Member], None]:
    """The images of a tar file.

    A label is the number in `<key>.cls`, the `label` in `<key>.json`, or else the folder in the image's name; `key` is
    the name up to the first dot, as in WebDataset.

    Raises: UserError when the file is damaged or compressed, or two images have one name, or one key and a label.
    """
    images: list[tuple[str, int, int]] = []
    labels: dict[str, int | str] = {}
    name = ""
    with path.open("rb") as file:
        try:
            for folder, member in _members(path, 0, path.stat().st_size):
                name = folder + member.name.removeprefix("./")
                if name.lower().endswith(IMAGE_SUFFIXES):
                    images.append((name, member.offset_data, member.size))
                    bar.update()
                elif name.lower().endswith((".cls", ".json")) and member.size < LONGEST_LABEL:
                    label = _label(read_at(file.fileno(), member.offset_data, member.size), name)
                    if label is not None:
                        labels.setdefault(key(name), label)
        except (tarfile.TarError, ValueError, OSError) as error:
            last = f" after {name!r}" if name else ""
            raise UserError(
                f"tar file {str(path)!r} cannot be read{last} ({error}); expected an uncompressed .tar file, "
                "download or copy it again"
            ) from error
    if labels and len({key(name) for name, _, _ in images}) < len(set(images)):
        seen: set[str] = set()
        twice = next(name for name, _, _ in images if key(name) in seen or seen.add(key(name)))
        raise UserError(
            f"tar file {str(path)!r} has several images of one key ({twice!r}); expected one image for each label"
        )
    return [Member(unquoted(name), (*where, 0, 0, 0), labels.get(key(name))) for name, *where in images], None


def read(handle: int, _path: Path, offset: int, size: int, *_: int) -> bytes:
    """An image's bytes."""
    return read_at(handle, offset, size)


def _members(path: Path, start: int, end: int, folder: str = "") -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular files, also of the tars within, each with the class folder of its tar.

    Raises: tarfile.TarError when the tar ends before `end` without its closing block. Python's reader takes a damaged
    header for the end.
    """
    with path.open("rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while member := archive.next():
                archive.members = []  # tarfile would keep every header: gigabytes for a million images
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"the file ends within {member.name!r}")
                if member.isfile() and member.name.endswith(".tar"):
                    inside = f"{Path(member.name).stem}/"
                    yield from _members(path, member.offset_data, member.offset_data + member.size, inside)
                elif member.isfile():
                    yield folder, member
            file.seek(archive.offset)
            if archive.offset + BLOCK > end or any(file.read(BLOCK)):
                raise tarfile.ReadError("the closing block is missing")


def _label(content: bytes, name: str) -> int | str | None:
    if name.lower().endswith(".cls"):
        if not content.strip().isdigit():
            raise ValueError(f"{name!r} is not a class number")
        return int(content)
    about = json.loads(content)
    return about.get("label") if isinstance(about, dict) else None


def key(name: str) -> str:
    """A name up to the first dot after the last slash, which is WebDataset's rule."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def quoted(name: str) -> str:
    """A name whose dots, but that of the suffix, are percent-encoded, so that the key is all of the name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    return folder + slash + stem.replace("%", "%25").replace(".", "%2E") + dot + suffix


def unquoted(name: str) -> str:
    """Inverse of `quoted`."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (unquote(file) if "%2E" in file or "%25" in file else file)
