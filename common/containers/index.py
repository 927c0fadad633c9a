"""The index of an image set in container files: where each image's bytes lie, its name and its label.

An index is built from the containers' headers when they are first opened, and kept as `.index-<hash>.npz` beside them,
or in the cache folder where that is not writable. It is rebuilt when a file's size or time of change differs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from common.classes import SPLITS, Listing, check_level, is_hidden
from common.containers.imagenet import SIDE_FILES, class_names, of_synset, validation_labels
from common.errors import UserError
from common.images import MOST_PIXELS

__all__ = ["Index", "Member", "check_splits", "load_index", "read_at", "splits"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-token-lab"
VERSION = 2
LARGEST = 4 * MOST_PIXELS  # bytes; no image that can be decoded is larger


@dataclass(frozen=True, slots=True)
class Member:
    """An image in a container: its name, five numbers that say where its bytes are, and its label if there is one.

    The numbers are those that the container's `read` takes. `label` is a class number or a class name; None: the class
    is the first folder of the name.
    """

    name: str
    where: tuple[int, int, int, int, int]
    label: int | str | None = None


@dataclass
class Index:
    """`rows` int64 (images, 6): number of the file, and `Member.where`."""

    listing: Listing
    rows: np.ndarray


Scan = Callable[[Path, tqdm], tuple[list[Member], list[str] | None]]
"""A container file and a progress bar of images -> its images, and the class names it states."""


def read_at(handle: int, offset: int, size: int) -> bytes:
    """Bytes of an open file. Raises: ValueError when the file is shorter."""
    content = os.pread(handle, size, offset)  # leaves the position alone: processes can share an inherited handle
    if len(content) < size:
        raise ValueError("the file ends before the image does")
    return content


def load_index(scan: Scan, files: Sequence[Path], source: str, inner: str = "") -> Index:
    """Read the index of `files`, or build it.

    Args:
        source: what the user passed, for messages.
        inner: folder within the container whose sub-folders are the classes; "" = found by itself.

    Raises: UserError as `scan`; when there are no images, or they are a level below the classes.
    """
    folder = files[0].parent
    beside = [folder / name for name in SIDE_FILES if (folder / name).is_file()]
    state = [[os.path.relpath(p, folder), p.stat().st_size, p.stat().st_mtime_ns] for p in (*files, *beside)]
    asked = {"version": VERSION, "files": state, "inner": inner}
    name = _file_name(state[0][0], len(files), inner)
    found = _read(folder / name, asked)  # others may have built it in a folder that we cannot write to
    if found is None and not os.access(folder, os.W_OK):
        folder, name = CACHE, _file_name(str(files[0].resolve()), len(files), inner)
        folder.mkdir(parents=True, exist_ok=True)
    if found is None:
        with open(folder / f"{name}.lock", "w") as lock:  # one process builds, the others of this machine read
            with suppress(OSError):  # file systems without locks: several may build, each replaces the file whole
                fcntl.flock(lock, fcntl.LOCK_EX)
            found = _read(folder / name, asked)
            if found is None:
                found = _build(scan, files, source, inner)
                _write(folder / name, asked, found)
    return found


def _file_name(*key: str | int) -> str:
    return f".index-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npz"


def _build(scan: Scan, files: Sequence[Path], source: str, inner: str) -> Index:
    members: list[Member] = []
    numbers: list[int] = []
    stated: list[str] | None = None
    hidden = 0
    start = inner.rstrip("/") + "/" if inner else ""
    with tqdm(unit="image", dynamic_ncols=True, delay=1.0) as bar:
        for number, path in enumerate(files):
            bar.set_description(f"index {path.name} ({number + 1} of {len(files)})", refresh=False)
            found, names = scan(path, bar)
            stated = stated or names
            _check(found, path)
            visible = [member for member in found if not is_hidden(member.name)]
            hidden += len(found) - len(visible)
            members += [member for member in visible if member.name.startswith(start)]
            numbers += [number] * (len(members) - len(numbers))
    if not members:
        raise UserError(f"{source!r} holds no images{f' in {inner!r}' if inner else ''}; check the path")
    classes, labels, names = _label(members, [files[number] for number in numbers], stated, inner, source)
    if len(set(names)) < len(names):  # keys that start again in every shard
        names = [f"{files[number].stem}/{name}" for number, name in zip(numbers, names, strict=True)]
    order = sorted(range(len(members)), key=lambda at: (labels[at], names[at]))
    listing = Listing(
        classes, [names[at] for at in order], [labels[at] for at in order],
        [f"{hidden} hidden files and folders"] if hidden else [],
    )  # fmt: skip
    return Index(listing, np.array([(numbers[at], *members[at].where) for at in order], dtype=np.int64))


def _check(found: list[Member], path: Path) -> None:
    """Raises: UserError for names that lead out of the container or stand twice in it, and for images too large."""
    seen = set()
    for member in found:
        if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            raise UserError(f"{str(path)!r}: the name {member.name!r} leads out of it; do not trust this file")
        if member.name in seen:
            raise UserError(
                f"{str(path)!r} holds {member.name!r} twice; write it again with one image of each name"
            )
        if max(member.where[1:3]) > LARGEST:
            raise UserError(
                f"{str(path)!r}: {member.name!r} has {max(member.where[1:3])} bytes, more than any image "
                f"({LARGEST}); remove it or do not trust this file"
            )
        seen.add(member.name)


def _label(
    members: list[Member], files: list[Path], stated: list[str] | None, inner: str, source: str
) -> tuple[list[str], list[int], list[str]]:
    """Classes, a label per image, and its name without the folders above the classes."""
    given = [member.label for member in members]
    names = [member.name for member in members]
    if any(label is None for label in given) and any(label is not None for label in given):
        at = given.index(None)
        raise UserError(
            f"{str(files[at])!r}: image {names[at]!r} has no label, others have; expected {names[at]}'s .cls beside it"
        )
    if given[0] is None:
        given, names = _folders(names, files, inner, source)
    elif all(isinstance(label, int) for label in given):
        if min(given) < 0:
            raise UserError(f"{source!r} has images without a label (-1); pass a split that has labels")
        known = class_names(files[0].parent)
        if known is None and (found := of_synset(names, given)):
            given, names = found
        else:
            classes = list(known or stated or [])
            return [*classes, *map(str, range(len(classes), max(given) + 1))], given, names
    classes = sorted(set(given))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[label] for label in given], names


def _folders(names: list[str], files: list[Path], inner: str, source: str) -> tuple[list[str], list[str]]:
    """The class of each image by its folder, and its name from there. Flat images of ImageNet have theirs otherwise."""
    cut = len(inner.rstrip("/")) + 1 if inner else _level(names)
    above, names = names[0][:cut].strip("/"), [name[cut:] for name in names]
    loose = ["/" not in name for name in names]
    if all(loose):
        labels = validation_labels(names, files[0])
        found = ([*labels], [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]) if labels else None
        return found or of_synset(names) or ([PurePosixPath(above or source).stem] * len(names), names)
    if any(loose):
        raise UserError(f"{source!r}: {names[loose.index(True)]!r} lies outside the class folders; remove it")
    check_level(os.path.join(source, "" if inner else above).rstrip("/"), names)
    return [name.partition("/")[0] for name in names], names


def _level(names: list[str]) -> int:
    """Length of the leading folders that all names share, above the folder of the class."""
    folders = {name.rpartition("/")[0] for name in names}
    parts = [part for part in os.path.commonpath(folders).split("/") if part]
    if len(folders) == 1:  # a single class
        parts = parts[:-1]
    return sum(len(part) + 1 for part in parts)


def splits(files: Sequence[Path]) -> dict[str, str]:
    """The splits that the names of the containers belong to, each with a pattern that selects its files."""
    found: dict[str, str] = {}
    for path in files:
        for word in "".join(c if c.isalpha() else " " for c in path.stem.lower()).split():
            if word in SPLITS:
                start = path.name[: path.name.lower().index(word) + len(word)]
                found.setdefault(word, f"{path.parent / start}*{path.suffix}")
    return found


def check_splits(files: Sequence[Path], source: str) -> None:
    """Raises: UserError when the names of the containers belong to several splits."""
    found = splits(files)
    if len(found) > 1:
        raise UserError(
            f"{source!r} holds files of the splits {', '.join(sorted(found))}; pass a pattern that selects one, such "
            f"as {next(iter(found.values()))!r}"
        )


def _read(path: Path, asked: dict[str, Any]) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            if about["asked"] != asked:
                return None
            names = archive["names"].tobytes().decode().split("\0")
            listing = Listing(about["classes"], names, archive["labels"].tolist(), about["left_out"])
            return Index(listing, archive["rows"])
    except Exception:  # missing or damaged: zip's, numpy's and JSON's readers raise many kinds of exceptions
        return None


def _write(path: Path, asked: dict[str, Any], index: Index) -> None:
    listing = index.listing
    about = {"asked": asked, "classes": listing.classes, "left_out": listing.left_out}
    partial = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(
            file, rows=index.rows, labels=np.array(listing.labels, dtype=np.int64),
            names=np.frombuffer("\0".join(listing.paths).encode(), np.uint8),
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )  # fmt: skip
    partial.replace(path)
