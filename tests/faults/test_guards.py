"""Losses that are not finite, signals, data that vanish, and warnings in time."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.guard import Alarm
from common.prefetch import Feed
from common.signals import Interrupts
from tests.faults import jobs
from tests.faults.inject import Fault
from tests.unit.test_loop import Toy, lines, run

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize(("kind", "ranks"), [("generator", 2), ("tokenizer", 1)])
def test_policy_stop(kind: str, ranks: int, data: Path, tmp_path: Path) -> None:
    """The loss of one rank is not a number in step 5: nothing of that step is kept, and all ranks leave with code 2."""
    out = tmp_path / kind
    fault = Fault(ranks - 1, 5, "loss", "nan")
    assert jobs.train(kind, data, out, ranks=ranks, fault=fault) == [2] * ranks
    assert jobs.intact(out).name == "0000004"
    assert "not finite in step 5; its update was skipped" in (out / "log.txt").read_text()
    dumps = [json.loads(path.read_text()) for path in sorted((out / "not_finite").iterdir())]
    assert [dump["rank"] for dump in dumps] == list(range(ranks))
    assert all(len(dump["files"]) == 4 // ranks and str(data) in dump["files"][0] for dump in dumps)


@pytest.mark.parametrize(("kind", "ranks"), [("generator", 2), ("tokenizer", 1)])
def test_policy_skip(kind: str, ranks: int, data: Path, tmp_path: Path) -> None:
    """Step 5 is left out of weights, moments and averages; the run comes to its end and every weight is finite."""
    out = tmp_path / kind
    fault = Fault(ranks - 1, 5, "loss", "nan")
    assert jobs.train(kind, data, out, "run.skip_limit=3", "log.every=1", ranks=ranks, fault=fault) == [0] * ranks
    weights, lines = jobs.outcome(out)
    assert all(value.isfinite().all() for value in weights.values())
    assert "train/loss" not in next(line for line in lines if line["step"] == 6)
    assert all("train/loss" in line for line in lines if line["step"] != 6)
    assert "skipped 1 in all" in (out / "log.txt").read_text()


def test_a_skipped_update_changes_nothing(tmp_path: Path) -> None:
    """Optimizers of both kinds: with a kernel that reads the flag, and without."""
    from common import optim
    from common.options import OptimConfig

    module = torch.nn.Linear(3, 2)
    for optimizer in (optim.adamw(module, OptimConfig()), torch.optim.SGD(module.parameters(), momentum=0.9, lr=0.1)):
        for value in (1.0, float("nan"), float("inf")):
            before = [p.clone() for p in module.parameters()]
            moments = json.dumps([float(v.sum()) for s in optimizer.state.values() for v in s.values()])
            loss = module(torch.ones(1, 3)).sum() * value
            optimizer.zero_grad()
            loss.backward()
            _, left_out = optim.update(optimizer, OptimConfig(lr=0.1), 1, 10, loss)
            same = all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
            assert same == bool(left_out) == (value != 1.0)
            if value != 1.0:
                assert moments == json.dumps([float(v.sum()) for s in optimizer.state.values() for v in s.values()])


def test_more_skips_in_a_row_than_allowed_stop_the_run(tmp_path: Path) -> None:
    bad = {3: "nan", 4: "nan", 6: "nan", 7: "nan"}
    run(tmp_path / "two", Toy(bad), skip_limit=2)
    with pytest.raises(UserError, match="step 5"):
        run(tmp_path / "three", Toy(bad | {5: "nan"}), skip_limit=2)


def test_what_was_counted_survives_a_resume(tmp_path: Path) -> None:
    bad = {3: "nan", 4: "nan", 5: "nan"}
    run(tmp_path, Toy(bad), skip_limit=2, stop_at=5)
    with pytest.raises(UserError, match="step 5"):
        run(tmp_path, Toy(bad), skip_limit=2)


# --------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGUSR1", 75)])
def test_a_signal_saves_and_the_code_says_what_to_do(name: str, code: int, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "generator"
    assert jobs.train("generator", data, out, fault=Fault(0, 4, "step", name)) == [code]
    assert jobs.intact(out).name == "0000005"


def test_one_rank_s_signal_stops_both(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    assert jobs.train("generator", data, out, ranks=2, fault=Fault(1, 4, "step", "SIGUSR1")) == [75, 75]
    assert jobs.intact(out).name == "0000005"


def test_a_second_ctrl_c_leaves_at_once() -> None:
    child = os.fork()
    if child == 0:
        Interrupts(launched=False)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGINT


def test_a_launcher_s_echo_is_not_a_second_ctrl_c() -> None:
    noted = Interrupts(launched=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        noted._first -= 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        noted.restore()


# ------------------------------------------------------------------------------------------------------------ data


class _Vanishing(Toy):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        if step == 6:
            shutil.rmtree(self.folder)
        return super().step(batch, step)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_vanished_folder_is_a_sentence_and_every_step_is_saved(
    workers: int, policy: str, data: Path, tmp_path: Path
) -> None:
    from common import loop
    from common.data import ImageFolder, stream
    from common.options import LogConfig, RunConfig
    from tests.unit.test_loop import ALONE

    folder = shutil.copytree(data / "images", tmp_path / "images")
    images = ImageFolder(folder, 16, bad_images=policy)

    def loader(start: int, stop: int):
        for batch in stream(images, 2, 0, 1, 0, start, stop, workers):
            yield {"x": batch["pixels"].float().mean(dim=(1, 2))[:, :2], **batch}

    settings = RunConfig(out=str(tmp_path / "out"), steps=40, checkpoint_every=5)
    with pytest.raises(UserError, match=r"\d\.png' does not exist") as caught:
        loop.run(_Vanishing(folder), loader, settings, LogConfig(every=5), ALONE, {"model": 1}, name=images.name)
    assert "\n" not in str(caught.value)
    assert int(jobs.intact(tmp_path / "out").name) >= 7
    assert "the data failed after step" in (tmp_path / "out" / "log.txt").read_text()


def test_unreadable_images_are_replaced_and_counted(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data / "images", tmp_path / "data" / "images")
    shutil.copy(data / "tokenizer.yaml", tmp_path / "data")
    (folder / "a" / "2.png").write_bytes(b"")
    assert jobs.train("tokenizer", tmp_path / "data", tmp_path / "stop") == [2]
    assert jobs.train("tokenizer", tmp_path / "data", tmp_path / "skip", "data.bad_images=skip") == [0]
    said = [line for line in (tmp_path / "skip" / "log.txt").read_text().splitlines() if "cannot be read" in line]
    # 12 steps of 4 images pass 10 files nearly five times
    assert len(said) in (4, 5) and all("a/2.png cannot be read" in line and "a/3.png took" in line for line in said)
    assert f"({len(said)})" in said[-1]


def test_a_stalled_loader_is_reported_while_it_stalls() -> None:
    told: list[str] = []

    def slow():
        time.sleep(0.5)
        yield {"index": torch.tensor([0])}

    with Feed(slow(), CPU, str, told.append, stall_s=0.1) as feed:
        feed.advance()
    assert len(told) == 1 and "no batch for" in told[0] and feed.waited_s >= 0.5 and feed.problem is None


def test_nothing_of_a_feed_is_left_to_a_thread() -> None:
    """A thread that frees the last batch while the interpreter ends aborts the process, after all is done and saved."""
    before = set(threading.enumerate())
    for _ in range(50):
        with Feed([{"index": torch.tensor([0])}], CPU, str, print) as feed:
            feed.advance()
        assert set(threading.enumerate()) == before


# ------------------------------------------------------------------------------------------------- loader processes


def _loaders(parent: int) -> list[int]:
    """The pids of a training's child processes."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _with_loaders(data: Path, out: Path) -> subprocess.Popen:
    """A tokenizer training in a process group of its own, with two loader processes, some steps after its start."""
    words = ["--config", f"{data}/tokenizer.yaml", f"data.root={data}/images", f"run.out={out}", "data.workers=2"]
    words += ["run.steps=100000", "run.checkpoint_every=100000", "log.every=1", "data.batch_size=32"]
    child = subprocess.Popen(
        [sys.executable, "-m", "tokenizer.train", *words], cwd=Path(__file__).parents[2], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "metrics.jsonl").is_file():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    return child


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_process_group_saves(sent: int, code: int, data: Path, tmp_path: Path) -> None:
    """Schedulers, timeout(1) and a terminal's Ctrl-C send it to the loader processes, too."""
    child = _with_loaders(data, tmp_path / "out")
    loaders = _loaders(child.pid)
    os.killpg(child.pid, sent)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code and "Traceback" not in said, said
    assert jobs.intact(tmp_path / "out") is not None
    assert len(loaders) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in loaders)


def test_a_killed_loader_process_is_a_sentence_after_a_save(data: Path, tmp_path: Path) -> None:
    child = _with_loaders(data, tmp_path / "out")
    os.kill(_loaders(child.pid)[-1], signal.SIGKILL)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 2 and "Traceback" not in said, said
    assert "error: a loader process died (exit code -9" in said
    assert jobs.intact(tmp_path / "out") is not None


def test_a_killed_loader_process_of_another_job_is_a_sentence(data: Path) -> None:
    """Jobs that read every image once, and loader processes that do not end by themselves."""
    from common.data import ImageFolder, batches

    images = ImageFolder(data / "images", 16)
    reading = batches(images, range(len(images)), 1, workers=2)
    next(reading)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(UserError, match="a loader process died"):
        list(reading)
    reading = batches(images, range(len(images)), 1, workers=2)
    next(reading)
    started = multiprocessing.active_children()
    assert started
    reading.close()
    for worker in started:
        worker.join(10)
        assert not worker.is_alive()


# --------------------------------------------------------------------------------------------------------- warnings


def test_alarms_ring_once_and_again_after_they_have_stopped() -> None:
    usage = Alarm("u", "collapses", fallen=0.5)
    heard = [usage.look(step, {"u": value}) for step, value in enumerate((0.2, 0.8, 0.5, 0.3, 0.2, 0.7, 0.1))]
    assert [bool(said) for said in heard] == [False, False, False, True, False, False, True]
    assert "u is 0.3 at step 3: collapses" in heard[3]
    logits = Alarm("l", "explodes", above=100.0)
    assert [bool(logits.look(0, {"l": value})) for value in (-99.0, -101.0, 5.0)] == [False, True, False]
    late = Alarm("u", "collapses", below=0.02, after=10)
    assert not late.look(9, {"u": 0.0}) and late.look(10, {"u": 0.0}) and not late.look(11, {})


def test_the_tokenizer_s_alarms_name_figures_that_it_logs(data: Path, tmp_path: Path) -> None:
    from tokenizer.train import alarms

    assert jobs.train("tokenizer", data, tmp_path / "out", "run.steps=3") == [0]
    assert {alarm.key for alarm in alarms()} <= set(lines(tmp_path / "out")[-1])


def test_a_changed_config_is_said(data: Path, tmp_path: Path) -> None:
    assert jobs.train("generator", data, tmp_path / "out", "run.stop_at=2") == [0]
    assert jobs.train("generator", data, tmp_path / "out", "run.stop_at=4", "optim.lr=0.5") == [0]
    said = (tmp_path / "out" / "log.txt").read_text()
    assert "since then the config has changed in run.stop_at, optim.lr" in said


def test_codes_beyond_the_vocabulary_stop_the_run(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "codes", tmp_path / "codes")
    shutil.copy(data / "generator.yaml", tmp_path)
    codes = np.load(tmp_path / "codes" / "codes.npy")
    codes[3] = 32
    np.save(tmp_path / "codes" / "codes.npy", codes)
    assert jobs.train("generator", tmp_path, tmp_path / "out") == [2]
    assert "image 3 has codes 32 to 32, the codebook ends at 31" in (tmp_path / "out.rank0.txt").read_text()
