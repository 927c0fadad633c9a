"""What `--dry-run` prints for every shipped config, as the command in the config's header runs it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "dry_run"
CONFIGS = sorted(
    path.relative_to(ROOT / "configs").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
    if path.name != "zoo.yaml"
)


def command(name: str) -> str:
    """The training command in the header of `configs/<name>`, or the one that its chain of jobs runs it by."""
    path = f"configs/{name}"
    comments = [line[1:].strip() for line in (ROOT / path).read_text().splitlines() if line.startswith("#")]
    for line in comments:
        if line.startswith("bash scripts/train_") and path in line:
            return line
    if Path(name).stem in ("gpt", "rar"):
        return f"bash scripts/train_c2i.sh --config {path} --code-path DIR --out DIR"
    return f"bash scripts/train_tokenizer.sh --config {path} --data-path DIR --out DIR"


@cache
def launched(script: str) -> list[str]:
    """The module that a launcher starts, and the arguments it adds itself."""
    environment = {**os.environ, "DRY_RUN": "1", "GPUS": "1", "NNODES": "1"}
    shown = subprocess.run(["bash", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    _, switch, *words = shlex.split(shown.stdout)
    assert switch == "-m"
    return words


def resolved(name: str) -> str:
    """The YAML that the job prints for `configs/<name>`, with ImageNet at /imagenet."""
    _, script, *given = shlex.split(command(name).replace("$IMGNET_ROOT", "/imagenet"))
    module, *added = launched(script)
    output = io.StringIO()
    with (
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", [module, *added, *given, "--dry-run"]),
        contextlib.redirect_stdout(output),
    ):
        try:
            importlib.import_module(module).main()
        except SystemExit as stopped:
            assert not stopped.code, name
    return output.getvalue()


def write() -> None:
    """Replace all stored YAMLs."""
    for path in STORED.rglob("*.yaml"):
        path.unlink()
    for name in CONFIGS:
        (STORED / name).parent.mkdir(parents=True, exist_ok=True)
        (STORED / name).write_text(resolved(name))


def different() -> list[str]:
    """The configs that resolve otherwise than recorded."""
    return [f"configs/{name}" for name in CONFIGS if resolved(name) != (STORED / name).read_text()]
