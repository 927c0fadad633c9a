"""The golden runner as tests: one per fixture; the released sizes, which take minutes, are marked slow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import __main__ as command
from tests.golden import runner

HERE = runner.SHARED.is_dir()
FIXTURES = runner.find(runner.SHARED) if HERE else []
OPTIONAL = {"tiny/gigatok_1d_options"}

needs_numbers = pytest.mark.skipif(not HERE, reason=f"no reference numbers in {runner.SHARED}")


def parameter(fixture):
    marks = [pytest.mark.slow] if fixture.kind == "fullsize" else []
    return pytest.param(fixture, id=fixture.name, marks=marks)


@needs_numbers
@pytest.mark.parametrize("fixture", [parameter(fixture) for fixture in FIXTURES])
def test_fixture(fixture):
    outcome = runner.check(fixture)
    if outcome.status == "skip":
        assert fixture.name in OPTIONAL and outcome.detail.startswith("OPTIONAL: ")
        pytest.skip(outcome.detail)
    assert outcome.status == "pass", outcome.line()


@needs_numbers
def test_every_family_has_a_fixture():
    assert {runner.family_of(fixture) for fixture in FIXTURES} == set(runner.FAMILIES)


@pytest.fixture
def few(tmp_path):
    """A directory of the same layout with copies of some small fixtures, under other names."""
    for source, target in (("quantizer", "quantizer_again"), ("gpt_1d", "another_gpt")):
        for path in (runner.SHARED / "tiny").glob(f"{source}.*"):
            (tmp_path / "tiny").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "tiny" / path.name.replace(source, target, 1))
    return tmp_path


@needs_numbers
def test_fixtures_may_be_dropped_in(few, capsys):
    assert command.main([str(few)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["PASS tiny/another_gpt", "PASS tiny/quantizer_again"]
    assert lines[-1] == "2 passed, 0 failed"


@needs_numbers
def test_a_family_can_be_chosen(few, capsys):
    assert command.main([str(few), "--family", "gpt"]) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed\n")


@needs_numbers
@pytest.mark.parametrize("name", ["another_gpt", "quantizer_again"])
def test_a_wrong_number_is_seen(few, name, capsys):
    path = few / "tiny" / f"{name}.io.safetensors"
    path.chmod(0o644)
    tensors = load_file(path)
    key = next(key for key, value in tensors.items() if value.dtype == torch.float32 and key.endswith(("logits", "zq")))
    tensors[key] = tensors[key] * (1 + 3e-5)
    save_file(tensors, path)
    assert command.main([str(few)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed"
    assert any(line.startswith(f"FAIL tiny/{name}: ") and key in line for line in lines)


@needs_numbers
def test_a_missing_key_is_seen(tmp_path, capsys):
    contract = json.loads((runner.SHARED / "contracts/disc_patchgan.json").read_text())
    contract["keys"].pop("main.0.bias")
    (tmp_path / "contracts").mkdir()
    (tmp_path / "contracts/disc_patchgan.json").write_text(json.dumps(contract))
    assert command.main([str(tmp_path)]) == 1
    assert "FAIL contracts/disc_patchgan: keys: " in capsys.readouterr().out


def test_an_unknown_fixture_and_an_empty_directory_fail(tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    assert command.main([str(tmp_path)]) == 1
    (tmp_path / "tiny/poem.json").write_text("{}")
    assert command.main([str(tmp_path)]) == 1
    assert "no family knows it" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([str(Path(tmp_path) / "nowhere")])
