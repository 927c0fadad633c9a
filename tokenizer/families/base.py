"""A family of released tokenizers: how to recognise its files, rename their tensors and read a config off them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from common.errors import UserError
from tokenizer.quantizers.base import USAGE_WINDOW

Value = TypeVar("Value")
Prefixes = Iterable[tuple[str, str]]

USAGE = "quantizer.codebook_used"
HEAD_WIDTH = 64  # of every released transformer


@dataclass(frozen=True)
class Family:
    """One family. Only names and shapes of tensors are looked at, so recognition reads no weights.

    name: for `from_released`; files are written for those named like their encoder part. title: for messages.
    signs: keys that every released file has. own: a key that only files under our names have; "" if files of ours are
    another family's. rename: released tensors by name -> tensors under our names. config: tensors under our names ->
    the `model` part of a config. restore: the inverse of `rename`; None if no files of this kind are written.
    fits: a further condition on a released file that has all signs. stated: the `config.json` beside a released file ->
    what it says of the config.
    """

    name: str
    title: str
    signs: tuple[str, ...]
    own: str
    rename: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    restore: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    fits: Callable[[Mapping[str, Tensor]], bool] = lambda _: True
    stated: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _: {}

    def matches(self, tensors: Mapping[str, Tensor]) -> bool:
        return self.own in tensors or (all(key in tensors for key in self.signs) and self.fits(tensors))

    def ours(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """The tensors under our names, whichever names they have."""
        return dict(tensors) if self.own in tensors else self.rename(tensors)


def swap(tensors: Mapping[str, Value], prefixes: Prefixes) -> dict[str, Value]:
    """Tensors by name, the first fitting prefix of each name replaced."""

    def swapped(key: str) -> str:
        return next((new + key[len(old) :] for old, new in prefixes if key.startswith(old)), key)

    return {swapped(key): value for key, value in tensors.items()}


def swap_back(tensors: Mapping[str, Value], prefixes: Prefixes) -> dict[str, Value]:
    """Inverse of `swap`."""
    return swap(tensors, [(new, old) for old, new in prefixes])


def count(tensors: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the group of `pattern` matches at the start of a key."""
    found = [re.match(pattern, key) for key in tensors]
    return max(int(match[1]) for match in found if match) + 1


def heads(width: int, where: str) -> int:
    """Attention heads of a transformer, 64 channels each. Raises: UserError for a width that is not a multiple."""
    if width % HEAD_WIDTH:
        raise UserError(f"the width {width} of {where} is not a multiple of {HEAD_WIDTH}: heads unknown; pass a config")
    return width // HEAD_WIDTH


def codebook(tensors: Mapping[str, Tensor], name: str, **options: Any) -> dict[str, Any]:
    """The quantizer part of a config, its sizes read off the table of code vectors."""
    size, dim = tensors["quantizer.embedding.weight"].shape
    return {"name": name, "codebook_size": size, "codebook_dim": dim, **options}


def unknown_usage(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Adds an empty record of used codes to tensors under our names, where a file with a codebook has none."""
    if "quantizer.embedding.weight" not in tensors or USAGE in tensors:
        return dict(tensors)
    return {**tensors, USAGE: torch.full((USAGE_WINDOW,), -1.0)}


def forget_usage(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `unknown_usage`."""
    return {key: value for key, value in tensors.items() if key != USAGE}
