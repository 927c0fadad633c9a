"""A run killed at every single file operation of a checkpoint write, and disks that do not take it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import checkpoint
from common.errors import UserError
from tests.faults import jobs
from tests.faults.inject import Fault, inject
from tests.unit.test_loop import Toy, lines, run

ROOT = Path(__file__).parents[2]
STEPS_OF_A_CHECKPOINT = (5, 10, 12)


def _toy(out: Path, fault: Fault) -> None:
    inject(fault, 0)
    run(out, Toy())


def _in_a_process(*arguments: object) -> int:
    """A fork: one thread, no process group, and eighty of them in a few seconds."""
    process = multiprocessing.get_context("fork").Process(target=_toy, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_a_kill_at_any_file_operation_costs_one_interval_at_most(tmp_path: Path) -> None:
    """The checkpoint of step 10, and that of step 12, after which keep_last=2 deletes the one of step 5."""
    whole, _ = run(tmp_path / "whole")
    expected = lines(tmp_path / "whole")
    tried = 0
    for step in (9, 11):
        before = STEPS_OF_A_CHECKPOINT[STEPS_OF_A_CHECKPOINT.index(step + 1) - 1]
        for operation in range(200):
            out = tmp_path / f"{step}-{operation}"
            if _in_a_process(out, Fault(0, step, f"write:{operation}")) == 0:
                break  # there is no such operation: the run came to its end
            tried += 1
            found = jobs.intact(out)
            assert found is not None and int(found.name) in (before, step + 1), operation
            again, _ = run(out)
            assert all(a.equal(b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
            assert lines(out) == expected
            names = {path.name for path in (out / "checkpoints").iterdir()}
            assert names == {"0000010", "0000012"}, "something is left over"
            shutil.rmtree(out)
        else:
            pytest.fail("the write never ended")
    assert tried >= 30
    print(f"{tried} file operations")


@pytest.mark.parametrize("background", [False, True])
def test_an_error_in_the_writing_reaches_the_run(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint.save_file

    def full(tensors: dict, path: Path) -> None:
        if "0000010" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(tmp_path, background_save=background)
    assert jobs.intact(tmp_path).name == "0000005"


def test_background_saves_hold_what_direct_ones_do(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "direct")
    two, _ = run(tmp_path / "background", background_save=True)
    for name in ("0000010", "0000012"):
        files = [
            json.loads((tmp_path / kind / "checkpoints" / name / "manifest.json").read_text())["files"]
            for kind in ("direct", "background")
        ]
        assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    again, _ = run(tmp_path / "cut", background_save=True, stop_at=7)
    again, _ = run(tmp_path / "cut", background_save=True)
    assert all(a.equal(b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True))
    assert all(a.equal(b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


ON_SMALL_DISKS = """
import subprocess, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from common.errors import UserError
from tests.unit.test_loop import run
for pages in range(2, 10):
    disk = Path({folder!r}) / str(pages)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={{4 * pages}}k", "tmpfs", disk], check=True)
    try:
        run(disk / "run")
    except UserError as error:
        print(pages, "error:", error)
    subprocess.run(["cp", "-r", disk, f"{{disk}}-after"])
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="this machine does not let us mount a small disk",
)
def test_a_full_disk_ends_in_a_sentence_and_costs_nothing(tmp_path: Path) -> None:
    """tmpfs of 2 to 9 pages: none has room for every checkpoint; whatever is named a checkpoint is complete."""
    job = ON_SMALL_DISKS.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run(["unshare", "-rm", sys.executable, "-c", job], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(said) == 8 and all("free space" in line for line in said), done.stdout
    counts = []
    for pages in range(2, 10):
        folder = tmp_path / f"{pages}-after" / "run" / "checkpoints"
        left = sorted(folder.iterdir()) if folder.is_dir() else []
        assert all(checkpoint.is_complete(path) and not checkpoint.damaged(path) for path in left)
        counts.append(len(left))
    assert counts[0] == 0 and counts[-1] > 0, counts


def test_a_read_only_folder_is_a_sentence(tmp_path: Path) -> None:
    """Root may write anywhere, so a file stands where the folder should be when there is no unprivileged user."""
    run(tmp_path / "run", stop_at=5)
    checkpoints = tmp_path / "run" / "checkpoints"
    if os.geteuid() == 0:
        good = tmp_path / "good"
        checkpoints.rename(good)
        checkpoints.write_text("in the way")
    else:
        good = checkpoints
        checkpoints.chmod(0o500)
    try:
        with pytest.raises(UserError, match="could not be written"):
            run(tmp_path / "run")
    finally:
        good.chmod(0o700)
    assert checkpoint.is_complete(good / "0000005") and not checkpoint.damaged(good / "0000005")
