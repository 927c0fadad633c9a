"""The golden runner as tests: one per fixture; the released sizes, which take minutes, are marked slow.

The numbers in the repository are checked everywhere, those beside it where they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import __main__ as command
from tests.golden import runner
from tests.golden.fixture import read_packed, read_tensors

FIXTURES = runner.find(runner.DATA)
BESIDE = [folder for folder in (runner.SHARED, runner.SHARED / "titok", runner.SHARED / "grid") if folder.is_dir()]
MORE = [fixture for folder in BESIDE for fixture in runner.find(folder)]
TEXT_AWARE = {f"contracts/tatitok_{name}" for name in ("BL-32_vq", "BL-128_vq", "BL-32_vae", "BL-64_vae", "SL-128_vae")}
OPTIONAL = TEXT_AWARE | {
    "contracts/tatitok_BL-64_vq", "tiny/gigatok_1d_options", "schedules/robustok_blur_fade", "tiny/binary_scaled",
    "tiny/binary_full_entropy",
}  # fmt: skip


def parameter(fixture):
    marks = [pytest.mark.slow] if fixture.kind == "fullsize" else []
    beside = "beside/" if fixture in MORE else ""
    return pytest.param(fixture, id=beside + fixture.name, marks=marks)


@pytest.mark.parametrize("fixture", [parameter(fixture) for fixture in FIXTURES + MORE])
def test_fixture(fixture):
    outcome = runner.check(fixture)
    if outcome.status == "skip":
        assert fixture.name in OPTIONAL and outcome.detail.startswith("OPTIONAL: ")
        pytest.skip(outcome.detail)
    assert outcome.status == "pass", outcome.line()


def test_every_family_has_a_fixture():
    assert {runner.family_of(fixture) for fixture in FIXTURES} == set(runner.FAMILIES)


@pytest.fixture
def few(tmp_path):
    """A directory of the same layout with copies of some small fixtures, under other names."""
    for source, target in (("quantizer", "quantizer_again"), ("gpt_1d", "another_gpt")):
        for path in (runner.DATA / "tiny").glob(f"{source}.*"):
            (tmp_path / "tiny").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "tiny" / path.name.replace(source, target, 1))
    return tmp_path


def test_fixtures_may_be_dropped_in(few, capsys):
    assert command.main([str(few)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["PASS tiny/another_gpt", "PASS tiny/quantizer_again"]
    assert lines[-1] == "2 passed, 0 failed"


def test_a_family_can_be_chosen(few, capsys):
    assert command.main([str(few), "--family", "gpt"]) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed\n")


@pytest.mark.parametrize("name", ["another_gpt", "quantizer_again"])
def test_a_wrong_number_is_seen(few, name, capsys):
    path = few / "tiny" / f"{name}.io.safetensors"
    tensors = read_tensors(path)
    key = next(key for key, value in tensors.items() if value.dtype == torch.float32 and key.endswith(("logits", "zq")))
    tensors[key] = tensors[key] * (1 + 3e-5)
    save_file(tensors, path)
    assert command.main([str(few)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 passed, 1 failed"
    assert any(line.startswith(f"FAIL tiny/{name}: ") and key in line for line in lines)


def test_a_missing_key_is_seen(tmp_path, capsys):
    contract = read_packed(runner.DATA / "contracts.json.xz")["disc_patchgan"]
    contract = {**contract, "keys": dict(contract["keys"])}
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
