"""What a checkpoint's manifest records of the data it was trained on: `classes`, `codes_of`, `data`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checkpoint import MANIFEST, resolve_folder
from common.errors import UserError

__all__ = ["check_resume", "read_provenance"]


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The manifest of a run or checkpoint; empty for released files, which have none."""
    manifest = resolve_folder(path) / MANIFEST
    return json.loads(manifest.read_text()) if manifest.is_file() else {}


def check_resume(path: Path, now: Mapping[str, Any]) -> str | None:
    """Compare the data of a resumed run with the record of its checkpoint; returns a warning when they changed.

    Raises: UserError when the classes or the tokenizer are others, so that labels or codes would change their meaning.
    """
    before = read_provenance(path)
    for key, what in (("codes_of", "codes of another tokenizer"), ("classes", "other classes")):
        if None not in (before.get(key), now.get(key)) and before[key] != now[key]:
            raise UserError(
                f"the data are {what} than {str(path)!r} was trained on; pass its data, or start a new run with "
                "another --out"
            )
    old, new = before.get("data") or {}, now.get("data") or {}
    changed = [f"{key} {old[key]} -> {new[key]}" for key in old.keys() & new.keys() if old[key] != new[key]]
    return f"the training data changed since {path}: {', '.join(sorted(changed))}" if changed else None
