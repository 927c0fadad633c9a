"""Result files: written atomically, with what was measured and how, and reused only for exactly the same question."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import fingerprint, resolve_folder, sha256
from common.weight_choice import used
from evaluations.c2i.evaluator import few_images
from evaluations.metrics.inception import InceptionGraph

__all__ = [
    "Features", "Protocol", "checkpoint", "environment", "few_images", "files_key", "git_commit", "read_current",
    "weights_key", "write", "write_json", "write_text",
]


@dataclass(frozen=True)
class Features:
    """The network behind a distribution metric, and the reference images."""

    engine: str
    sha256: str
    """Of the graph file, or of the weights."""
    reference: dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How figures were made: what must be equal before two of them are compared.

    No field has a default, so that no job omits one; None means that the field does not apply.
    """

    metrics: list[str]
    features: dict[str, Features]
    images: int
    labels: str | None
    guidance: dict[str, Any] | None
    seed: int | None
    precision: str
    num_tokens: list[int]
    checkpoints: dict[str, dict[str, Any]]


def environment() -> dict[str, Any]:
    """Code and libraries behind a result, and the command if a job was started from the command line."""
    told = {"git_commit": git_commit(), "torch": str(torch.__version__), "python": sys.version.split()[0]}
    started = getattr(sys.modules["__main__"], "__spec__", None)
    if started and started.name.startswith("evaluations."):
        told["command"] = shlex.join(["python", "-m", started.name, *sys.argv[1:]])
    return told


def git_commit() -> str | None:
    """The commit of this tree, with "-dirty" for uncommitted changes; None outside a git checkout."""
    git, root = shutil.which("git"), Path(__file__).parents[1]
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None


def checkpoint(path: str | Path, weights: str) -> dict[str, str]:
    """Path of a checkpoint, the hash of its files, and which of its weights ("model" or "ema") are used.

    Raises: UserError when there is no checkpoint.
    """
    folder = resolve_folder(path)
    return {"path": str(folder), "weights_sha256": fingerprint(folder), "weights": used(folder, weights)}


def files_key(paths: Iterable[str | Path]) -> str:
    """A short hash of the paths, sizes and modification times of files."""
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def weights_key(network: nn.Module | InceptionGraph) -> str:
    """A hash of a network's names and weights, or of the file with the Inception graph."""
    if isinstance(network, InceptionGraph):
        return sha256(network.path)
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + b"\0" + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_current(path: str | Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier result if it answers exactly `question`; None when it is missing, damaged or answers another one."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("question") == json.loads(json.dumps(question))
    return found if same else None


def write(
    path: str | Path, question: dict[str, Any], results: dict[str, Any], flags: Iterable[str] = (),
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Write `{question, environment, flags, protocol, **results}` atomically and return it as written.

    Numbers that are not finite become null and are named in `flags`.
    """
    flags = list(dict.fromkeys(flags))
    body = {"question": question, "environment": environment(), "flags": flags}
    if protocol is not None:
        body["protocol"] = asdict(protocol)
    body |= _finite(results, "", flags)
    write_json(path, body)
    return body


def write_json(path: str | Path, body: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(body, indent=1, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(value: Any, name: str, flags: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item, f"{name}.{key}".lstrip("."), flags) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, f"{name}[{index}]", flags) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        flags.append(f"{name} is {value}")
        return None
    return value
