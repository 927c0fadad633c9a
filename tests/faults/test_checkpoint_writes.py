"""A run killed at every single file operation of a checkpoint write, and disks that do not take it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.errors import UserError
from common.options import RunConfig
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


def test_a_background_save_does_not_see_what_training_does_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, buffers and plain containers change in place while the thread writes."""
    written = threading.Event()
    original = checkpoint.save

    def late(*arguments: object) -> Path:
        assert written.wait(30)
        return original(*arguments)

    monkeypatch.setattr(checkpoint, "save", late)
    saver = checkpoint.Saver(RunConfig(out=str(tmp_path), background_save=True), {}, None, print)
    weights = {"model": {"a": torch.zeros(3), "b": torch.zeros(3).bfloat16()}}
    state = {"optimizer": {0: {"m": torch.zeros(2)}}, "sums": [torch.zeros(1), 0], "counts": {"x": 0}}
    saver.save(1, weights, state)
    for tensor in (*weights["model"].values(), state["optimizer"][0]["m"], state["sums"][0]):
        tensor.fill_(7)
    state["counts"]["x"], state["sums"][1] = 7, 7
    written.set()
    saver.finish()
    folder = checkpoint.newest(tmp_path)
    assert all(value.eq(0).all() for value in checkpoint.read_weights(folder, "model").values())
    found = checkpoint.read_state(folder)
    assert found["optimizer"][0]["m"].eq(0).all() and found["sums"] == [torch.zeros(1), 0]
    assert found["counts"] == {"x": 0}


def test_files_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    folder = checkpoint.save(tmp_path, 3, {"model": {"a": torch.zeros(1)}}, {}, {})
    at = events.index("rename")
    partial = f"{folder}.partial"
    names = {"config.json", "manifest.json", "model.safetensors", "state.pt"}
    assert set(events[:at]) == {partial, *(f"{partial}/{name}" for name in names)}
    assert events[at + 1 :] == [str(folder.parent), str(tmp_path)]


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from now on."""
    hashed: list[str] = []
    original = checkpoint.sha256
    monkeypatch.setattr(checkpoint, "sha256", lambda path: (hashed.append(Path(path).name), original(path))[1])
    return hashed


def test_a_resume_hashes_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "one", stop_at=5)
    hashed = _reads(monkeypatch)
    run(tmp_path / "one", stop_at=5)
    assert sorted(hashed) == ["config.json", "model.safetensors", "state.pt"]
    hashed.clear()
    run(tmp_path / "two", stop_at=5, resume_from=str(tmp_path / "one"))
    assert sorted(hashed) == ["config.json", "model.safetensors", "state.pt"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "state.pt"])
def test_a_damaged_checkpoint_of_another_run_is_not_resumed_from(name: str, tmp_path: Path) -> None:
    run(tmp_path / "one", stop_at=5)
    victim = tmp_path / "one" / "checkpoints" / "0000005" / name
    content = bytearray(victim.read_bytes())
    content[-2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged .{name}"):
        run(tmp_path / "two", resume_from=str(tmp_path / "one"))


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps a file that another process has open."""
    original = shutil.rmtree

    def rmtree(path: Path, *arguments: object, **named: object) -> None:
        if str(path).endswith(".pruned"):
            raise OSError(39, "Directory not empty", str(path))
        original(path, *arguments, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    run(tmp_path)
    run(tmp_path)
    assert checkpoint.newest(tmp_path).name == "0000012"
    said = (tmp_path / "log.txt").read_text()
    assert "warning: " in said and "0000005.pruned' cannot be deleted (Directory not empty)" in said


IN_ONE_FOLDER = """
import sys
sys.path.insert(0, {root!r})
from common import config
from tests.unit.test_loop import Toy, run
class Slow(Toy):
    def step(self, batch, step):
        if step == 6:
            print("here", flush=True)
            sys.stdin.read()
        return super().step(batch, step)
config.main(lambda: run({out!r}, Slow()))
"""


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """While the first one trains; not after it was killed, though its folder is as it left it."""
    job = [sys.executable, "-c", IN_ONE_FOLDER.format(root=str(ROOT), out=str(tmp_path / "run"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(job, **pipes)
    while "here" not in first.stdout.readline():
        assert first.poll() is None, first.stderr.read()
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    second = subprocess.run(job, input="", capture_output=True, text=True)
    assert second.returncode == 2 and "another process is already training in" in second.stderr, second.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    first.kill()
    first.communicate()
    third = subprocess.run(job, input="", capture_output=True, text=True)
    assert third.returncode == 0, third.stderr


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
