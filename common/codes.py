"""Code store: the codes of an image folder in a memory-mapped array.

    <store>/
        codes.npy    uint16 (uint32 beyond 65,536 codes), shape (images, augmentations, N)
        labels.npy   int64 (images,)
        meta.json    codebook_size, num_tokens, classes, tokenizer (checkpoint hash), codes_of (hash of its encoder
                     side), crops, hash of the image order

A store is built in `<store>.partial` and renamed when complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.classes import match_classes
from common.errors import UserError
from common.numerics import numpy_generator

__all__ = ["ChunkedWriter", "CodeStore", "check_settings", "code_dtype", "hash_names", "import_npy", "write_text"]

REQUIRED = ("num_images", "num_augmentations", "num_tokens", "codebook_size", "classes", "tokenizer")


class CodeStore(Dataset):
    """Reader of a store. Items are dicts: `codes` int64 (N,), `label` int, `index` int.

    An item asked for as (index, position), as `common.data.stream` does, is the augmentation that (seed, position)
    draws; for a plain index it is augmentation 0.

    Args:
        num_tokens: keeps a prefix of the codes; None = all.
        classes: names of the classes in the order of their numbers, where a model defines them; None: the store's own.

    Raises: UserError when the folder is not a complete store, its parts disagree, it has fewer codes per image, or it
    has a class that `classes` does not name.
    """

    def __init__(
        self, path: str | Path, num_tokens: int | None = None, seed: int = 0, classes: Sequence[str] | None = None
    ) -> None:
        self.path = path = Path(path)
        try:
            self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
            self._codes = np.load(path / "codes.npy", mmap_mode="r", allow_pickle=False)
            self.labels = np.load(path / "labels.npy", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(
                f"{str(path)!r} is not a code store ({Path(error.filename).name} is missing); make one with "
                "autoregressive.extract_codes and pass it as --code-path"
            ) from error
        except Exception as error:  # numpy's and JSON's readers raise many kinds of exceptions for damaged files
            raise UserError(f"code store {str(path)!r} is damaged ({error}); extract it again") from error
        self._check()
        self.num_tokens = num_tokens or self.meta["num_tokens"]
        if self.num_tokens > self.meta["num_tokens"]:
            raise UserError(
                f"code store {str(path)!r} has {self.meta['num_tokens']} codes per image, asked for {self.num_tokens}; "
                "lower model.num_tokens or extract with another tokenizer"
            )
        self.seed = seed
        self.codebook_size: int = self.meta["codebook_size"]
        self.classes: list[str] = self.meta["classes"]
        if classes is not None:
            self.labels = np.array(match_classes(self.classes, classes, str(path)), dtype=np.int64)[self.labels]
            self.classes = list(classes)

    def _check(self) -> None:
        """Raises: UserError when arrays and meta.json disagree."""
        missing = [key for key in REQUIRED if not isinstance(self.meta, dict) or key not in self.meta]
        if missing:
            raise UserError(f"code store {str(self.path)!r}: meta.json lacks {', '.join(missing)}; extract it again")
        expected = tuple(self.meta[key] for key in ("num_images", "num_augmentations", "num_tokens"))
        classes, problem = self.meta["classes"], None
        if self._codes.dtype.kind not in "iu" or self.labels.dtype.kind not in "iu":
            problem = f"codes are {self._codes.dtype}, labels {self.labels.dtype}, expected integers"
        elif not isinstance(classes, list) or not isinstance(self.meta["codebook_size"], int):
            problem = "meta.json has other types"
        elif self._codes.shape != expected or self.labels.shape != expected[:1]:
            problem = f"codes are {self._codes.shape}, meta.json says {expected}"
        elif len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(classes):
            problem = f"labels are {self.labels.min()} to {self.labels.max()}, but there are {len(classes)} classes"
        if problem:
            raise UserError(f"code store {str(self.path)!r} is damaged: {problem}; extract it again")

    def __len__(self) -> int:
        return self._codes.shape[0]

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, np.ndarray | int]:
        if isinstance(item, tuple):
            index, position = item
            rng = numpy_generator(self.seed, "augmentation", position)
            augmentation = int(rng.integers(self._codes.shape[1]))
        else:
            index, augmentation = item, 0
        codes = self._codes[index, augmentation, : self.num_tokens].astype(np.int64)
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise UserError(
                f"code store {str(self.path)!r} is damaged: image {index} has codes {codes.min()} to {codes.max()}, "
                f"the codebook ends at {self.codebook_size - 1}; extract it again"
            )
        return {"codes": codes, "label": int(self.labels[index]), "index": index}

    def name(self, index: int) -> str:
        """An image in messages."""
        return f"{self.path}[{index}]"

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records of its training images."""
        return {"images": len(self), **{key: self.meta[key] for key in ("image_order", "crops") if key in self.meta}}

    def augmentations(self, index: int) -> np.ndarray:
        """All codes of an image: int64 (augmentations, N)."""
        return self._codes[index, :, : self.num_tokens].astype(np.int64)


class ChunkedWriter:
    """Builds a store chunk by chunk, from any number of processes, resumable after any interruption.

    Chunk c holds images [c * chunk, (c + 1) * chunk); any process may write it, and its file appears whole or not at
    all. `finish` (one process, after all chunks) merges the chunks and renames the store.

    Raises: UserError if the unfinished store at this path was started with other settings.
    """

    def __init__(self, path: str | Path, meta: dict[str, Any], chunk: int = 1024) -> None:
        self.path, self.meta, self.chunk = Path(path), dict(meta), chunk
        self.partial = self.path.with_name(self.path.name + ".partial")

    def is_finished(self) -> bool:
        """Whether the store exists. Raises: UserError if it was made with other settings."""
        if not self.path.exists():
            return False
        self._check(self.path / "meta.json", self.meta, "already holds")
        return True

    def prepare(self) -> None:
        """Create or check the unfinished store; one process, before any `write`."""
        plan = self.partial / "meta.json"
        if plan.is_file():
            self._check(plan, {**self.meta, "chunk": self.chunk}, "is half done with")
        else:
            self.partial.mkdir(parents=True, exist_ok=True)
            write_text(plan, json.dumps({**self.meta, "chunk": self.chunk}, indent=1))

    def missing(self) -> list[int]:
        """Numbers of the chunks to write."""
        return [number for number in self._numbers() if not self._file(number).is_file()]

    def images(self, number: int) -> range:
        """The images of a chunk."""
        return range(number * self.chunk, min((number + 1) * self.chunk, self.meta["num_images"]))

    def write(self, number: int, codes: np.ndarray) -> None:
        """codes: integers (images of the chunk, augmentations, N)."""
        shape = (len(self.images(number)), self.meta["num_augmentations"], self.meta["num_tokens"])
        if codes.shape != shape or codes.min() < 0 or codes.max() >= self.meta["codebook_size"]:
            raise ValueError(f"chunk {number}: got {codes.shape} in [{codes.min()}, {codes.max()}], expected {shape}")
        partial = self._file(number).with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, codes.astype(code_dtype(self.meta["codebook_size"])))
        partial.replace(self._file(number))

    def finish(self, labels: Sequence[int]) -> Path:
        """Merge the chunks, write the labels, rename the store; returns its path."""
        shape = tuple(self.meta[key] for key in ("num_images", "num_augmentations", "num_tokens"))
        merged = np.lib.format.open_memmap(
            self.partial / "codes.npy", "w+", dtype=code_dtype(self.meta["codebook_size"]), shape=shape
        )
        for number in self._numbers():
            span = self.images(number)
            merged[span.start : span.stop] = np.load(self._file(number), allow_pickle=False)
        merged.flush()
        np.save(self.partial / "labels.npy", np.asarray(labels, dtype=np.int64))
        for number in self._numbers():
            self._file(number).unlink()
        write_text(self.partial / "meta.json", json.dumps(self.meta, indent=1))
        self.partial.replace(self.path)
        return self.path

    def _numbers(self) -> range:
        return range(-(-self.meta["num_images"] // self.chunk))

    def _file(self, number: int) -> Path:
        return self.partial / f"chunk-{number:06d}.npy"

    def _check(self, plan: Path, expected: dict[str, Any], state: str) -> None:
        check_settings(plan, expected, f"{state} codes", "--code-path")


def check_settings(plan: Path, expected: dict[str, Any], state: str, flag: str) -> None:
    """Compare the settings in the file `plan` with the expected ones. Raises: UserError naming those that differ."""
    try:
        found = json.loads(plan.read_text())
    except (OSError, ValueError):
        found = {}
    differing = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    if differing:
        raise UserError(
            f"{str(plan.parent)!r} {state} of other settings ({', '.join(differing)} differ); "
            f"remove it or choose another {flag}"
        )


def import_npy(codes: Path, labels: Path, out: str | Path, codebook_size: int) -> Path:
    """A store from the papers' layout: `<codes>/<i>.npy` ([1,] augmentations, N) and `<labels>/<i>.npy`.

    Raises: UserError when files are missing or do not fit together.
    """
    count = sum(1 for path in codes.glob("*.npy") if path.stem.isdigit())
    if count == 0:
        raise UserError(f"{str(codes)!r} holds no 0.npy, 1.npy, ...; expected the papers' layout of one file per image")
    first = _read_npy(codes / "0.npy")
    first = first.reshape(-1, first.shape[-1])
    numbers = [int(_read_npy(labels / f"{index}.npy").reshape(())) for index in range(count)]
    writer = ChunkedWriter(out, {
        "num_images": count, "num_augmentations": first.shape[0], "num_tokens": first.shape[1],
        "codebook_size": codebook_size, "classes": [str(number) for number in range(max(numbers) + 1)],
        "tokenizer": None, "crops": "imported", "image_order": "imported",
    })
    if writer.is_finished():
        return writer.path
    writer.prepare()
    for number in writer.missing():
        rows = [_read_npy(codes / f"{index}.npy").reshape(-1, first.shape[1]) for index in writer.images(number)]
        if any(row.shape != first.shape for row in rows) or max(row.max() for row in rows) >= codebook_size:
            raise UserError(
                f"{str(codes)!r}: some of images {writer.images(number)} lack {first.shape} codes below {codebook_size}"
            )
        writer.write(number, np.stack(rows))
    return writer.finish(numbers)


def code_dtype(codebook_size: int) -> type[np.unsignedinteger]:
    """The smallest stored type: uint16 up to 65,536 codes, uint32 beyond."""
    return np.uint16 if codebook_size <= 1 << 16 else np.uint32


def hash_names(names: Iterable[str]) -> str:
    """A short hash of names and their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:16]


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); expected an .npy file with integers") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
