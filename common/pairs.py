"""Pairs for post-training: an image, and codes of it that a generator has partly replaced.

    <pairs>/
        meta.json           num_samples, shard, codebook_size, num_tokens, image_size, what made them (tokenizer,
                            generator, sampling, sigma, keep policy, seed)
        shard-00000.npz     codes uint16 or uint32 (n,L), label int32 (n,), sigma float16 (n,), path text (n,),
                            keep uint8 (n, ceil(L/8)): packed bits, 1 where the code is the image's own

A shard appears whole or not at all; the set is complete when all shards are there. Post-training needs this folder and
the images, not the generator. Source: RobusTok's post-training (arXiv 2509.12474), with codes instead of PNGs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.codes import check_settings, code_dtype, write_text
from common.containers import open_images
from common.errors import UserError

__all__ = ["PairFolder", "PairWriter"]

VERSION = 1
REQUIRED = ("version", "num_samples", "shard", "num_tokens", "codebook_size", "image_size", "codes_of")


class PairWriter:
    """Builds a pair set shard by shard, from any number of processes, resumable after any interruption.

    Args:
        meta: everything the pairs depend on; equal settings resume, others are refused.
    """

    def __init__(self, path: str | Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = Path(path), {"version": VERSION, **meta}

    def prepare(self) -> None:
        """Create or check the folder; one process, before any `write`. Raises: UserError for other settings."""
        plan = self.path / "meta.json"
        if self.path.exists() and any(self.path.iterdir()):
            check_settings(plan, json.loads(json.dumps(self.meta)), "holds pairs", "--out")
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(plan, json.dumps(self.meta, indent=1))

    def missing(self) -> list[int]:
        """Numbers of the shards to write."""
        return _missing(self.path, self.meta)

    def samples(self, number: int) -> range:
        """The samples of a shard."""
        return range(number * self.meta["shard"], min((number + 1) * self.meta["shard"], self.meta["num_samples"]))

    def write(self, number: int, codes: np.ndarray, labels: list[int], paths: list[str], keep: np.ndarray) -> None:
        """codes int64 (n,L), keep bool (n,L), for the n samples of shard `number`."""
        arrays = {
            "codes": codes.astype(code_dtype(self.meta["codebook_size"])), "label": np.array(labels, np.int32),
            "sigma": np.full(len(codes), self.meta["sigma"], np.float16), "path": np.array(paths),
            "keep": np.packbits(keep, axis=1),
        }
        final = _shard(self.path, number)
        partial = final.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(final)


class PairFolder(Dataset):
    """A complete pair set and the folder with its images.

    Items are dicts: `codes` int64 (L,), `pixels` uint8 (H,W,3) of the real image's centre crop, `label` int, `sigma`,
    `index` int. Images are found by name, whatever their suffix.

    Raises: UserError when the set is incomplete or damaged, or an image is not under `root`.
    """

    def __init__(self, path: str | Path, root: str | Path) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        lacking = _missing(self.path, self.meta)
        if lacking:
            raise UserError(
                f"pair set {str(path)!r} lacks {len(lacking)} shards, the first is number {lacking[0]}; run the "
                "make_pairs command that began it again"
            )
        shards = [self._read(number) for number in range(_count(self.meta))]
        self.codes, self.labels, self.sigma, self.paths = (
            np.concatenate([shard[key] for shard in shards]) for key in ("codes", "label", "sigma", "path")
        )
        self.classes: list[str] = self.meta["classes"]
        self.images = open_images(root, self.meta["image_size"])
        numbers = {os.path.splitext(name)[0]: number for number, name in enumerate(self.images.names())}
        found = [numbers.get(os.path.splitext(str(name))[0]) for name in self.paths]
        if None in found:
            raise UserError(
                f"image {str(self.paths[found.index(None)])!r} of the pairs is not under {str(root)!r}; pass the "
                "folder that the pairs were made from (data.root)"
            )
        self._numbers = found

    def _read(self, number: int) -> dict[str, np.ndarray]:
        path = _shard(self.path, number)
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in ("codes", "label", "sigma", "path")}
        except Exception as error:  # zip, header and key errors alike
            raise UserError(f"{str(path)!r} is damaged ({error}); remove it and run make_pairs again") from error

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        index = item[0] if isinstance(item, tuple) else item
        return {
            "codes": self.codes[index].astype(np.int64), "pixels": self.images[self._numbers[index]]["pixels"],
            "label": int(self.labels[index]), "sigma": np.float32(self.sigma[index]), "index": index,
        }

    def name(self, index: int) -> str:
        """An image in messages."""
        return self.images.name(self._numbers[index])

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records of its training images."""
        return {"images": len(self), "image_order": self.meta.get("images"), "codes_of": self.meta["codes_of"]}


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is not a pair set ({error}); make one with make_pairs") from error
    absent = [key for key in REQUIRED if key not in meta]
    if absent or meta["version"] != VERSION:
        raise UserError(f"pair set {str(path)!r} has another format, or lacks {', '.join(absent)}; make it again")
    return meta


def _count(meta: dict[str, Any]) -> int:
    return -(-meta["num_samples"] // meta["shard"])


def _shard(path: Path, number: int) -> Path:
    return path / f"shard-{number:05d}.npz"


def _missing(path: Path, meta: dict[str, Any]) -> list[int]:
    return [number for number in range(_count(meta)) if not _shard(path, number).is_file()]
