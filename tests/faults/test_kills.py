"""Trainings that are killed, at random and where it hurts most, end in the same weights, averages and logged figures.

All 20 kills of every job: python -m pytest -m slow tests/faults/test_kills.py
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import jobs
from tests.faults.inject import Fault

FEW = [("generator", 1, 2), ("tokenizer", 2, 2)]
ALL = [(kind, ranks, 20) for kind in ("tokenizer", "generator") for ranks in (1, 2)]
CASES = [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)]


@pytest.mark.parametrize(("kind", "ranks", "kills"), CASES)
def test_random_kills_change_nothing(
    kind: str, ranks: int, kills: int, data: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    """SIGKILL to one rank at a random moment after it has begun (or resumed), `kills` times; then left alone."""
    steps = 6 + 3 * kills
    reference = whole(kind, ranks, steps)
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    step_s = sorted(line["time/step_s"] for line in lines)[len(lines) // 2]
    out, rng, happened = tmp_path / kind, random.Random(f"{kind}{ranks}"), 0
    for _attempt in range(4 * kills):
        begun = _times_begun(out)
        started = jobs.start(kind, data, out, f"run.steps={steps}", ranks=ranks)
        while _times_begun(out) == begun and all(process.is_alive() for process in started):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 5 * step_s))
        victim = rng.randrange(ranks)
        started[victim].kill()
        codes = jobs.finish(started, timeout_s=120)
        happened += codes[victim] == -9
        if codes == [0] * ranks or happened == kills:
            break
    assert happened >= min(kills, 2), "the run was over before it could be killed"
    print(f"{kind} on {ranks} ranks: {happened} kills")
    assert jobs.train(kind, data, out, f"run.steps={steps}", ranks=ranks) == [0] * ranks
    jobs.assert_same(reference, out)


@pytest.mark.parametrize(
    ("place", "rank"),
    [
        ("all_reduce", 1),
        ("half:model.safetensors", 0),
        pytest.param("all_reduce", 0, marks=pytest.mark.slow),
        pytest.param("step", 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_of_one_of_two_ranks(
    place: str, rank: int, data: Path, whole: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "generator"
    codes = jobs.train("generator", data, out, ranks=2, fault=Fault(rank, 5, place))
    assert codes[rank] == -9 and codes[1 - rank] not in (0, -9)  # the other one notices, and does not wait for ever
    assert jobs.intact(out).name == "0000004"
    assert f"rank {1 - rank} failed: " in (out / "log.txt").read_text()
    assert jobs.train("generator", data, out, ranks=2) == [0, 0]
    jobs.assert_same(whole("generator", 2), out)


def test_an_exception_on_any_rank_is_in_the_log(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "generator"
    codes = jobs.train("generator", data, out, ranks=2, fault=Fault(1, 3, "step", "raise"))
    assert 0 not in codes
    said = (out / "log.txt").read_text()
    assert "rank 1 failed: Traceback" in said and "InjectedError: on purpose" in said


@pytest.mark.parametrize("kind", ["generator", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_another_number_of_ranks_goes_on_with_the_same_batches(kind: str, data: Path, tmp_path: Path) -> None:
    """To rounding, because sums are added up in another order. What is drawn per rank (dropout inside the model) and
    what remembers per rank (the ring of used codes) is switched off; small steps, so that rounding stays rounding.
    """
    still = ["optim.lr=1e-5", "log.every=1"]
    still += ["model.quantizer.refresh_every=0"] if kind == "tokenizer" else ["model.residual_dropout=0"]
    assert jobs.train(kind, data, tmp_path / "one", *still) == [0]
    out = tmp_path / kind
    assert jobs.train(kind, data, out, *still, "run.stop_at=5", ranks=2) == [0, 0]
    assert jobs.train(kind, data, out, *still) == [0]
    (_, expected), (_, found) = (jobs.outcome(run) for run in (tmp_path / "one", out))
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(1, 13))
    for one, other in zip(expected, found, strict=True):
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=1e-3), one["step"]


def _times_begun(out: Path) -> int:
    log = out / "log.txt"
    said = log.read_text() if log.is_file() else ""
    return said.count("resuming from") + said.count("training from scratch")
