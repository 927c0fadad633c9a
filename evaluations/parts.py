"""Images that several processes make, packed into one `.npz` in dataset order with bounded memory.

Every process appends its contiguous share to a part file; the main one joins the parts in rank order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.images import NpzWriter

__all__ = ["PartWriter", "join"]

CHUNK = 256


class PartWriter:
    """This process's share of `<path>`, as raw bytes in `<path>.part-<rank>`."""

    def __init__(self, path: str | Path, rank: int) -> None:
        self.path = _part(path, rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")

    def write(self, pixels: np.ndarray) -> None:
        """Append uint8 (n,H,W,3)."""
        self._file.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())

    def close(self) -> None:
        self._file.close()


def join(path: str | Path, count: int, size: tuple[int, int], ranks: int, about: Mapping[str, Any]) -> None:
    """Join the parts of all ranks into `<path>` (`arr_0` uint8 (count,H,W,3), and `about`) and delete them."""
    writer = NpzWriter(path, count, size, about)
    step = size[0] * size[1] * 3
    for rank in range(ranks):
        with _part(path, rank).open("rb") as file:
            while block := file.read(CHUNK * step):
                writer.write(np.frombuffer(block, np.uint8).reshape(-1, *size, 3))
    writer.close()
    for rank in range(ranks):
        _part(path, rank).unlink()


def _part(path: str | Path, rank: int) -> Path:
    return Path(f"{path}.part-{rank:05d}")
