"""Codes as RobusTok and RAR release them: one JSON object per line, {"class_id": 3, "tokens": [17, ...]}.

The file is memory-mapped: one pass at the start finds where the lines begin, and a line is parsed when it is asked for.
The file does not say which tokenizer made the codes. Source: RobusTok (arXiv 2509.12474), its released code.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.errors import UserError

__all__ = ["TokenLines"]

CLASS = re.compile(rb'"class_id"\s*:\s*(\d+)')


class TokenLines(Dataset):
    """Items are dicts: `codes` int64 (N,), `label` int. A line is an image, or one of its crops.

    Args:
        codebook_size: number of different codes.
        num_tokens: keeps a prefix of the codes; None = as many as the first line has.

    Raises: UserError when the file is missing or a line has another format.
    """

    def __init__(self, path: str | Path, codebook_size: int | None, num_tokens: int | None = None) -> None:
        self.path = Path(path)
        if not codebook_size:
            raise UserError(f"{str(path)!r} does not say how many codes there are; set model.codebook_size=NUMBER")
        if not self.path.is_file() or not self.path.stat().st_size:
            raise UserError(f"{str(path)!r} is not a file with tokens; expected lines of class_id and tokens (.jsonl)")
        starts, labels, at = [], [], 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found = CLASS.search(line)
                if found is None and line.strip():
                    raise UserError(f"{str(path)!r}, line {number}: no class_id; expected class_id and tokens")
                if found is not None:
                    starts.append(at)
                    labels.append(int(found[1]))
                at += len(line)
        self.starts, self.labels = np.array([*starts, at]), np.array(labels, dtype=np.int64)
        self.codebook_size = codebook_size
        self.num_tokens = num_tokens or len(self._parse(0))
        self.classes = [str(number) for number in range(int(self.labels.max()) + 1)]
        self.meta: dict[str, Any] = {"tokenizer": None}
        self._codes(0)

    def name(self, index: int) -> str:
        """An image in messages."""
        return f"{self.path}, image {index}"

    def facts(self) -> dict[str, Any]:
        """What a checkpoint records of its training images."""
        return {"images": len(self)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, np.ndarray | int]:
        index = item[0] if isinstance(item, tuple) else item
        return {"codes": self._codes(index), "label": int(self.labels[index])}

    def _codes(self, index: int) -> np.ndarray:
        codes = np.array(self._parse(index)[: self.num_tokens], dtype=np.int64)
        if len(codes) != self.num_tokens or codes.min() < 0 or codes.max() >= self.codebook_size:
            raise UserError(
                f"{str(self.path)!r}, image {index}: {len(codes)} codes up to {codes.max(initial=0)}; expected "
                f"{self.num_tokens} below {self.codebook_size} (model.num_tokens, model.codebook_size)"
            )
        return codes

    def _parse(self, index: int) -> list[int]:
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            line = mapped[self.starts[index] : self.starts[index + 1]]
        try:
            return json.loads(line)["tokens"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{str(self.path)!r}, image {index} cannot be read ({error}); expected tokens") from error
