"""Which weights of a checkpoint a job uses: the trained ones (`model`) or their moving average (`ema`).

One rule for all jobs: tokenizers default to `ema` (or `model` where a run kept no average), generators to `model`, as
in the papers. Every job prints its choice and writes it into its record.
"""

from __future__ import annotations

from pathlib import Path

from common import dist
from common.checkpoint import has_weights, resolve_folder

__all__ = ["announce", "used"]


def used(path: str | Path, asked: str) -> str:
    """The weights that loading `path` with `asked` gives: "ema" falls back to "model" in a folder without an average.

    Raises: UserError when there is no checkpoint.
    """
    folder = resolve_folder(path)
    return asked if asked != "ema" or folder.is_file() or has_weights(folder, "ema") else "model"


def announce(role: str, path: str | Path, asked: str, flag: str) -> None:
    """Print one line on the main process: `role` ("tokenizer"), the weights it has, and `flag`, which changes that."""
    if dist.rank():
        return
    folder, chosen = resolve_folder(path), used(path, asked)
    note = ""
    if chosen != asked:
        note = "; the run kept no average (ema)"
    elif chosen == "model" and folder.is_dir() and has_weights(folder, "ema"):
        note = f"; the average is used with --{flag} ema"
    print(f"{role}: {chosen} weights of {folder}{note}", flush=True)
