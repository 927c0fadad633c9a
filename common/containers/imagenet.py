"""Labels of ImageNet that are not folders: synsets in file names, Kaggle's table, and the development kit's numbers.

The development kit of ILSVRC2012 numbers the classes in an order of its own, which `meta.mat` maps to synsets
(`n01440764`). Everything else uses the sorted synsets (Russakovsky et al., 2015, "ImageNet Large Scale Visual
Recognition Challenge").
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError

__all__ = ["SIDE_FILES", "class_names", "of_synset", "validation_labels"]

TABLE, TRUTH, META = "LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
NUMBERS, DEVKIT = "map_clsloc.txt", "ILSVRC2012_devkit_t12.tar.gz"
INSIDE = "ILSVRC2012_devkit_t12/data/"
CLASSES, OWN = "classes.txt", "index.json"
SIDE_FILES = (
    CLASSES, OWN, TABLE, DEVKIT, *(where + name for where in ("", INSIDE) for name in (TRUTH, META, NUMBERS)),
)  # fmt: skip
"""What is read beside a container."""

# The parquet copy of the Hugging Face hub adds the synset to every name.
NAME = re.compile(r"((n\d{8})_\d+|ILSVRC2012_val_(\d{8}))(?:_(n\d{8}))?\.\w+")


def class_names(folder: Path) -> list[str] | None:
    """Class names beside the containers: `classes.txt`, one a line, or the `index.json` of `common.shards`."""
    if (folder / CLASSES).is_file():
        return (folder / CLASSES).read_text(encoding="utf-8-sig").splitlines()
    found = json.loads((folder / OWN).read_text()) if (folder / OWN).is_file() else None
    return found.get("classes") if isinstance(found, dict) else None


def of_synset(names: Sequence[str], labels: Sequence[int] | None = None) -> tuple[list[str], list[str]] | None:
    """The synset in each file name, and the names that the images have in a folder of ImageNet.

    None when a name has no synset, or when synsets do not correspond to `labels` one to one.
    """
    found = [NAME.fullmatch(name.rpartition("/")[2]) for name in names]
    synsets = [match and (match[4] or match[2]) for match in found]
    if not all(synsets):
        return None
    kinds = len(set(synsets))
    if labels and not kinds == len(set(labels)) == len(set(zip(labels, synsets, strict=True))):
        return None
    return synsets, [f"{synset}/{match[1]}.JPEG" for synset, match in zip(synsets, found, strict=True)]


def validation_labels(names: Sequence[str], path: Path) -> list[str] | None:
    """Synsets of ImageNet's validation images, which lie in one folder; None when `names` are other images.

    They are read from Kaggle's table within or beside the container `path`, or from the development kit beside it.

    Raises: UserError when neither is there, or an image is not in it.
    """
    found = [NAME.fullmatch(name) for name in names]
    if not all(match and match[3] for match in found) or all(match[4] for match in found):
        return None
    if table := _within(path, TABLE) or _beside(path.parent, TABLE):
        rows = csv.DictReader(io.StringIO(table.decode()))
        known = {row["ImageId"]: row["PredictionString"].partition(" ")[0] for row in rows}
        labels = [known.get(match[1]) for match in found]
    elif truth := _beside(path.parent, TRUTH):
        synsets = _numbers(path)
        known = dict(enumerate(truth.split(), start=1))
        labels = [synsets.get(int(known.get(int(match[3]), 0))) for match in found]
    else:
        raise UserError(
            f"{str(path)!r} holds validation images without labels; put {TABLE} (Kaggle) or {DEVKIT} beside it"
        )
    if None in labels:
        raise UserError(
            f"{str(path)!r}: {names[labels.index(None)]!r} is not in {TABLE if table else TRUTH}; download that again"
        )
    return labels


def _numbers(path: Path) -> dict[int, str]:
    """The development kit's class numbers -> synsets."""
    if content := _beside(path.parent, META):
        from scipy.io import loadmat

        table = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(number): str(synset) for number, synset in zip(table["ILSVRC2012_ID"], table["WNID"], strict=True)}
    if content := _beside(path.parent, NUMBERS):
        rows = [line.split() for line in content.decode().splitlines() if line.strip()]
        return {int(number): synset for synset, number, *_ in rows}
    raise UserError(
        f"{TRUTH} numbers the classes in an order of its own; put {META} or {NUMBERS} of the development kit, or "
        f"{DEVKIT}, beside {str(path)!r}"
    )


def _within(path: Path, name: str) -> bytes | None:
    """A file at the top of a zip."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(name) if name in archive.namelist() else None


def _beside(folder: Path, name: str) -> bytes | None:
    """A file in `folder`, in the unpacked development kit there, or in its archive."""
    for path in (folder / name, folder / INSIDE / name):
        if path.is_file():
            return path.read_bytes()
    if not (folder / DEVKIT).is_file():
        return None
    with tarfile.open(folder / DEVKIT) as archive:
        found = INSIDE + name in archive.getnames()
        return archive.extractfile(INSIDE + name).read() if found else None
