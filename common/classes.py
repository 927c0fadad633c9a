"""Classes of an image set: which folders they are, and how their names map to the numbers of another set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.images import IMAGE_SUFFIXES

__all__ = ["Listing", "check_level", "is_hidden", "list_folder", "match_classes"]

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}
SHOWN = 5  # names in a message


@dataclass
class Listing:
    """Images by name, with `labels` that are positions in `classes`."""

    classes: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What was ignored, as phrases with counts."""
    kind: str = ""
    """What holds the images, where that is not a folder."""

    def describe(self, known: Sequence[str] | None = None) -> str:
        """One line: number of images and classes, first names, what is missing and what was ignored."""
        filled = {self.classes[label] for label in set(self.labels)}
        text = f"{self.kind}{len(self.paths)} images, {shown('class', 'classes', self.classes)}"
        if empty := [name for name in self.classes if name not in filled]:
            text += f"; without images: {shown('class', 'classes', empty)}"
        if lacking := [name for name in known or [] if name not in self.classes]:
            text += f"; not in this set: {shown('class', 'classes', lacking)} of {len(known or [])}"
        if self.classes != sorted(self.classes):
            text += "; classes in the order of their labels, not of their names"
        return text + (f"; ignored: {', '.join(self.left_out)}" if self.left_out else "")


def shown(singular: str, plural: str, names: Sequence[str]) -> str:
    """`3 classes (apple, bird, cat)`, with the first few names."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {singular if len(names) == 1 else plural} ({', '.join(names[:SHOWN])}{more})"


def is_hidden(path: str) -> bool:
    """Whether a part of a relative path starts with a dot (`.ipynb_checkpoints`, `._0.png`) or is `__MACOSX`."""
    parts = PurePosixPath(path).parts
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)


def list_folder(root: Path) -> Listing:
    """The images below `root`: classes are its sub-folders, or there is one class when images lie directly in it.

    Hidden files and folders are ignored. An empty class folder keeps its number.

    Raises: UserError when there are no images, or when `root` is a level above the class folders.
    """
    hidden: list[str] = []
    folders, loose = _visible(root, hidden)
    listing, other = Listing([]), 0
    for label, folder in enumerate(folders):
        found: list[str] = []
        for directory, names, files in os.walk(os.path.join(root, folder)):
            hidden += [name for name in names + files if is_hidden(name)]
            names[:] = [name for name in names if not is_hidden(name)]
            visible = [name for name in files if not is_hidden(name)]
            images = [os.path.join(directory, name) for name in visible if name.lower().endswith(IMAGE_SUFFIXES)]
            other += len(visible) - len(images)
            found += images
        listing.paths += sorted(found)
        listing.labels += [label] * len(found)
    direct = sorted(os.path.join(root, name) for name in loose if name.lower().endswith(IMAGE_SUFFIXES))
    if listing.paths:
        start = len(os.path.join(root, ""))
        check_level(str(root), (path[start:] for path in listing.paths))
        listing.classes = folders
        counts = {"images outside the class folders": len(direct), "files that are not images": other}
    else:
        listing = Listing([root.name], direct, [0] * len(direct))
        counts = {"files that are not images": len(loose) - len(direct)}
    counts = {"hidden files and folders": len(hidden), **counts}
    listing.left_out = [f"{count} {what}" for what, count in counts.items() if count]
    if not listing.paths:
        raise UserError(
            f"image folder {str(root)!r} holds no images ({', '.join(IMAGE_SUFFIXES)}); expected <class>/*.png below it"
        )
    return listing


def _visible(root: Path, hidden: list[str]) -> tuple[list[str], list[str]]:
    """Names of the sub-folders and files of `root`; hidden ones are added to `hidden`."""
    folders, files = [], []
    for entry in os.scandir(root):
        (hidden if is_hidden(entry.name) else folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), files


def check_level(root: str, paths: Iterable[str]) -> None:
    """Raises: UserError when the first folder of the relative `paths` is a split, or never directly holds images."""
    parts = {path.replace(os.sep, "/").rpartition("/")[0] for path in paths}
    first = sorted({folder.partition("/")[0] for folder in parts})
    if all(name.lower() in SPLITS for name in first):
        raise UserError(
            f"{root!r} holds the splits {', '.join(first)}, not classes; pass one of them, such as "
            f"{os.path.join(root, first[0])!r}"
        )
    if all("/" in folder for folder in parts):
        raise UserError(
            f"{root!r} holds no images in its {shown('folder', 'folders', first)}, only in folders below them; "
            f"pass the folder whose sub-folders are the classes, such as {os.path.join(root, first[0])!r}"
        )


def match_classes(found: Sequence[str], known: Sequence[str], source: str) -> list[int]:
    """The number in `known` of each class in `found`.

    Equal names have equal numbers. Where one of the two has no names but the numbers 0, 1, ... (released generators,
    shards from elsewhere), `found` is taken by number: as it says, or by its order when it has as many classes.

    Raises: UserError when a class of `found` has no number in `known`.
    """
    numbers = {name: number for number, name in enumerate(known)}
    unknown = [name for name in found if name not in numbers]
    if not unknown:
        return [numbers[name] for name in found]
    counted = [str(number) for number in range(max(len(found), len(known)))]
    if list(found) == counted[: len(found)] and len(found) <= len(known):
        return list(range(len(found)))
    if list(known) == counted[: len(known)] and len(found) == len(known):
        return list(range(len(found)))
    raise UserError(
        f"{source!r} has {shown('class', 'classes', unknown)} that training had not; expected "
        f"{shown('class', 'classes', known)}; rename or remove these folders"
    )
