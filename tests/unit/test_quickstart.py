"""The quickstart's driver: its stages are commands that parse, and its ledger adds up over interruptions."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from studies import quickstart
from studies.quickstart import QuickstartConfig, run, stages

STAGES = stages(QuickstartConfig())


def job(words: list[str]) -> list[str]:
    """The module and its words, without the launcher in front."""
    return words[words.index("-m") + 1 :] if "-m" in words else words


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_command_that_its_job_understands(stage, monkeypatch, capsys):
    module, *words = job(STAGES[stage])
    monkeypatch.setattr(sys, "argv", [module, *words, "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main()
    assert stopped.value.code == 0


def test_other_data_and_fewer_steps() -> None:
    own = stages(QuickstartConfig(data="/my/images", fast=True))
    assert "emoji" not in own and "data.root=/my/images/train" in own["tokenizer"]
    assert {"run.steps=300"} <= set(own["tokenizer"]) and own["drawings"][-2:] == ["--every", "4"]
    assert "run.steps=300" not in STAGES["tokenizer"] and "--credit" not in own["report"]
    assert next(iter(stages(QuickstartConfig(data="photos")))) == "photos"


def read(options: QuickstartConfig) -> dict:
    return json.loads((Path(options.out) / "stages.json").read_text())


def test_time_adds_up_until_a_stage_is_finished(tmp_path, monkeypatch):
    options = QuickstartConfig(out=str(tmp_path))
    clock = iter(range(0, 1000, 5))  # every stage takes five seconds
    monkeypatch.setattr(quickstart.time, "perf_counter", lambda: next(clock))
    ran: list[str] = []

    def interrupted_in_training(words: list[str]) -> tuple[int, float]:
        ran.append(job(words)[0])
        return (130, 1.5) if job(words)[0] == "tokenizer.train" and len(ran) == 2 else (0, 0.5)

    with pytest.raises(KeyboardInterrupt):
        run(options, interrupted_in_training)
    assert ran == ["studies.emoji", "tokenizer.train"] and read(options)["seconds"] == {"emoji": 5, "tokenizer": 5}
    run(options, interrupted_in_training)
    assert ran[2:] == [job(words)[0] for words in STAGES.values()]
    assert read(options)["seconds"] == {**dict.fromkeys(STAGES, 5), "tokenizer": 10}
    assert read(options)["peak_rss_gb"] == 1.5


def test_a_failed_stage_stops_the_rest(tmp_path):
    ran: list[str] = []

    def fail_in_training(words: list[str]) -> tuple[int, float]:
        ran.append(job(words)[0])
        return (2 if job(words)[0] == "tokenizer.train" else 0), 0.1

    with pytest.raises(UserError, match="'tokenizer' ended with status 2"):
        run(QuickstartConfig(out=str(tmp_path)), fail_in_training)
    assert len(ran) == 2 and not read(QuickstartConfig(out=str(tmp_path)))["stages"]["tokenizer"]["finished"]


def test_memory_and_status_of_a_real_process(tmp_path):
    assert quickstart._spend(["studies.photos", "--no-such-flag"])[0] == 2
    # In a process of its own, as the quickstart runs it: a child's peak includes its parent's memory at the fork.
    code = "from studies import quickstart; print(*quickstart._spend(['studies.photos', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=quickstart.ROOT, capture_output=True, text=True, check=True)
    status, gigabytes = done.stdout.splitlines()[-1].split()
    assert status == "0" and 0.005 < float(gigabytes) < 1
