"""The index of an image set in container files: where each image's bytes lie, its name and its label.

An index is built from the containers' headers when they are first opened, and kept as `.index-<hash>.npz` beside them,
or in the cache folder where that is not writable. It is rebuilt when a container's size or time of change differs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common.classes import SPLITS, Listing, check_level, is_hidden
from common.errors import UserError

__all__ = ["Index", "Member", "load_index"]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-token-lab"
VERSION = 1


@dataclass(frozen=True)
class Member:
    """An image in a container: its name, three numbers that say where its bytes are, and its label if there is one.

    `label` is a class number or a class name; None: the class is the first folder of the name.
    """

    name: str
    where: tuple[int, int, int]
    label: int | str | None = None


@dataclass
class Index:
    """`rows` int64 (images, 4): number of the file, and `Member.where`."""

    listing: Listing
    rows: np.ndarray


Scan = Callable[[Path], tuple[list[Member], list[str] | None]]
"""A container file -> its images, and the class names it states."""


def load_index(scan: Scan, files: Sequence[Path], source: str, inner: str = "", ordered: bool = False) -> Index:
    """Read the index of `files`, or build it.

    Args:
        source: what the user passed, for messages.
        inner: folder within the container whose sub-folders are the classes; "" = found by itself.
        ordered: keep the order of the containers. Otherwise images are sorted by class and name, as in a folder.

    Raises: UserError as `scan`; when there are no images, or they are a level below the classes.
    """
    state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    asked = {"version": VERSION, "files": state, "inner": inner}
    name = f".index-{hashlib.sha256(json.dumps([state[0][0], len(state), inner]).encode()).hexdigest()[:16]}.npz"
    folder = files[0].parent if os.access(files[0].parent, os.W_OK) else CACHE
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:  # one process builds, the others of this machine read
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _read(folder / name, asked)
        if found is None:
            found = _build(scan, files, source, inner, ordered)
            _write(folder / name, asked, found)
    return found


def _build(scan: Scan, files: Sequence[Path], source: str, inner: str, ordered: bool) -> Index:
    members: list[tuple[int, Member]] = []
    stated: list[str] | None = None
    hidden = 0
    for number, path in enumerate(files):
        found, names = scan(path)
        stated = stated or names
        members += [(number, member) for member in found if not is_hidden(member.name)]
        hidden += sum(is_hidden(member.name) for member in found)
    if inner:
        start = inner.rstrip("/") + "/"
        members = [(number, member) for number, member in members if member.name.startswith(start)]
    if not members:
        raise UserError(f"{source!r} holds no images{f' in {inner!r}' if inner else ''}; check the path")
    classes, labels, names = _label([member for _, member in members], stated, inner, source)
    order: Iterable[int] = range(len(members))
    if not ordered:
        order = sorted(order, key=lambda at: (labels[at], names[at], members[at][0], members[at][1].where))
    listing = Listing(
        classes, [names[at] for at in order], [labels[at] for at in order],
        [f"{hidden} hidden files and folders"] if hidden else [],
    )
    rows = [(members[at][0], *members[at][1].where) for at in order]
    return Index(listing, np.array(rows, dtype=np.int64).reshape(-1, 4))


def _label(
    members: list[Member], stated: list[str] | None, inner: str, source: str
) -> tuple[list[str], list[int], list[str]]:
    """Classes, a label per image, and its name without the folders above the classes."""
    given = [member.label for member in members]
    names = [member.name for member in members]
    if any(label is None for label in given) and any(label is not None for label in given):
        lost = names[given.index(None)]
        raise UserError(f"{source!r}: image {lost!r} has no label, others have; expected {lost}'s .cls beside it")
    if all(isinstance(label, int) for label in given):
        if min(given) < 0:
            raise UserError(f"{source!r} has images without a label (-1); pass a split that has labels")
        classes = list(stated or [])
        return [*classes, *map(str, range(len(classes), max(given) + 1))], given, names
    if given[0] is None:
        cut = len(inner.rstrip("/")) + 1 if inner else _level(names)
        above, names = names[0][:cut].strip("/"), [name[cut:] for name in names]
        loose = ["/" not in name for name in names]
        if all(loose):
            return [PurePosixPath(above or source).stem], [0] * len(names), names
        if any(loose):
            raise UserError(f"{source!r}: {names[loose.index(True)]!r} lies outside the class folders; remove it")
        check_level(os.path.join(source, "" if inner else above).rstrip("/"), names)
        given = [name.partition("/")[0] for name in names]
    classes = sorted(set(given))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers[label] for label in given], names


def _level(names: list[str]) -> int:
    """Length of the leading folders that all names share, above the folder of the class."""
    folders = {name.rpartition("/")[0] for name in names}
    parts = [part for part in os.path.commonpath(folders).split("/") if part]
    if len(folders) == 1:  # a single class
        parts = parts[:-1]
    return sum(len(part) + 1 for part in parts)


def check_splits(files: Sequence[Path], source: str) -> None:
    """Raises: UserError when the names of the containers belong to several splits."""
    splits: dict[str, Path] = {}
    for path in files:
        for word in "".join(c if c.isalpha() else " " for c in path.stem.lower()).split():
            if word in SPLITS:
                splits.setdefault(word, path)
    if len(splits) > 1:
        word, path = next(iter(splits.items()))
        start = path.name[: path.name.lower().index(word) + len(word)]
        raise UserError(
            f"{source!r} holds files of the splits {', '.join(sorted(splits))}; pass a pattern that selects one, such "
            f"as '{path.parent / start}*{path.suffix}'"
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
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file, rows=index.rows, labels=np.array(listing.labels, dtype=np.int64),
            names=np.frombuffer("\0".join(listing.paths).encode(), np.uint8),
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )
    partial.replace(path)
