"""Weights out of files of any project: what is nested where, which part is meant, floats as float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common import torchfile
from common.errors import UserError

__all__ = ["Released", "read_released"]

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
WRAPPERS = ("_orig_mod.", "module.")
PARTS = ("model", "ema", "module", "state_dict")


@dataclass
class Released:
    """`tensors` by name; `part`: where they stood in the file ("" = it holds nothing else); `args`: settings beside
    them; `steps`: of the training that wrote it, if it says."""

    tensors: dict[str, Tensor]
    part: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None


def read_released(path: str | Path, order: Sequence[str]) -> Released:
    """One state dict of a checkpoint file: the first of `order` that is there, or the file itself if it has no parts.

    The names of wrappers (`module.`, `_orig_mod.`) are taken off. Half-precision and double tensors become float32;
    float32 ones stay mapped from the disk.

    Raises: UserError for a file that cannot be read, or holds none of the parts.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{str(path)!r} is no checkpoint file; expected {', '.join(SUFFIXES)}, a run or a folder")
    content = _safetensors(path) if path.suffix == ".safetensors" else torchfile.read(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{str(path)!r} holds a {type(content).__name__}; expected a dict of tensors")
    if _is_state_dict(content):
        return Released(_clean(content))
    for part in order:
        if _is_state_dict(content.get(part)):
            args, steps = content.get("args"), content.get("steps")
            return Released(_clean(content[part]), part, args if isinstance(args, dict) else {}, steps)
    there = ", ".join(f"{key!r}" for key in list(content)[:8])
    raise UserError(
        f"{str(path)!r} holds {there}, none of which is a state dict called {' or '.join(order)}; "
        f"choose with weights=NAME ({' or '.join(key for key in PARTS if key in content) or 'none fits'})"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{str(path)!r} does not exist; expected a checkpoint file (scripts/download_checkpoints.sh)")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); it is damaged or cut short: get it again") from error


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(x, Tensor) for x in content.values())


def _clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return {key: value.to(torch.float32) if value.is_floating_point() else value for key, value in tensors.items()}
