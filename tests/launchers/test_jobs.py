"""Every job answers `--help` and refuses unknown options in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "tokenizer", "autoregressive", "evaluations", "studies", "benchmarks")
JOBS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^    (config\.)?main\(main\)", path.read_text(), re.MULTILINE)
)


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_jobs_are_found():
    assert {"studies.photos", "tokenizer.train", "autoregressive.train"} <= set(JOBS)


@pytest.mark.parametrize("module", JOBS)
def test_help_answers(module):
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


@pytest.mark.parametrize("module", JOBS)
@pytest.mark.parametrize("word", ["--no-such-flag=1", "no_such_key=1"])
def test_an_unknown_option_is_one_sentence_and_a_code(module, word):
    done = run(module, word)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown ")
    assert done.stderr.count("\n") == 1
