"""Tar files: WebDataset shards, tars of an image folder, and tars of one tar per class (ILSVRC2012_img_train.tar)."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from common.containers.index import Member
from common.errors import UserError
from common.images import IMAGE_SUFFIXES

__all__ = ["key", "quoted", "scan"]


def scan(path: Path) -> tuple[list[Member], list[str] | None]:
    """The images of a tar file; class names are those of an `index.json` beside it (`common.shards` writes one).

    A label is the number in `<key>.cls`, the `label` in `<key>.json`, or else the folder in the image's name; `key` is
    the name up to the first dot, as in WebDataset.

    Raises: UserError when the file is damaged or compressed, or two images have one key and a label.
    """
    images: dict[str, Member] = {}
    labels: dict[str, int | str] = {}
    with path.open("rb") as file, tqdm(desc=f"index {path.name}", unit="file", delay=2.0) as bar:
        try:
            for folder, member in _members(path, 0):
                bar.update()
                name = folder + member.name.removeprefix("./")
                if name.lower().endswith(IMAGE_SUFFIXES):
                    images[name] = Member(unquoted(name), (member.offset_data, member.size, 0))
                elif name.lower().endswith((".cls", ".json")):
                    label = _label(os.pread(file.fileno(), member.size, member.offset_data), name)
                    if label is not None:
                        labels.setdefault(key(name), label)
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UserError(
                f"tar file {str(path)!r} cannot be read ({error}); expected an uncompressed .tar file"
            ) from error
    if not labels:
        return list(images.values()), None
    keys = {key(name) for name in images}
    if len(keys) != len(images):
        raise UserError(f"tar file {str(path)!r} has several images of one key; expected one image for each label")
    found = [Member(member.name, member.where, labels.get(key(name))) for name, member in images.items()]
    return found, _class_names(path)


def _members(path: Path, start: int, folder: str = "") -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular files, also of the tars within, each with the class folder of its tar."""
    with path.open("rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while member := archive.next():
                archive.members = []  # tarfile would keep every header: gigabytes for a million images
                if member.isfile() and member.name.endswith(".tar"):
                    yield from _members(path, member.offset_data, f"{Path(member.name).stem}/")
                elif member.isfile():
                    yield folder, member


def _label(content: bytes, name: str) -> int | str | None:
    if name.lower().endswith(".cls"):
        return int(content)
    about = json.loads(content)
    return about.get("label") if isinstance(about, dict) else None


def _class_names(path: Path) -> list[str] | None:
    beside = path.with_name("index.json")
    return json.loads(beside.read_text())["classes"] if beside.is_file() else None


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
