"""Conversion keeps every tensor, both ways, for every family; folders load like runs do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autoregressive
import tokenizer
from autoregressive import convert
from autoregressive.convert import ConvertConfig, run
from autoregressive.models.gpt import GPT
from autoregressive.released import write_released as write_generator
from common import checkpoint, weights
from common.errors import UserError
from tests import toys
from tests.unit.test_released_files import SMALL, generators, make, same
from tokenizer.model import Tokenizer
from tokenizer.released import write_released as write_tokenizer

ROOT = Path(__file__).parents[2]
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("name", SMALL)
def test_a_tokenizer_goes_to_a_folder_and_back(name, tmp_path):
    model = make(name)
    write_tokenizer(model, tmp_path / "a.pt")
    run(ConvertConfig(str(tmp_path / "a.pt"), str(tmp_path / "folder")))
    same(tokenizer.load(tmp_path / "folder"), model)
    assert json.loads((tmp_path / "folder/config.json").read_text())["kind"] == "tokenizer"
    run(ConvertConfig(str(tmp_path / "folder"), str(tmp_path / "b.pt")))
    before, after = (weights.read(tmp_path / name)["model"] for name in ("a.pt", "b.pt"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


@pytest.mark.parametrize("name", generators())
def test_a_generator_goes_to_a_folder_and_back(name, tmp_path):
    model = generators()[name]
    write_generator(model, tmp_path / "a.bin")
    run(ConvertConfig(str(tmp_path / "a.bin"), str(tmp_path / "folder")))
    same(autoregressive.load(tmp_path / "folder"), model)
    run(ConvertConfig(str(tmp_path / "folder"), str(tmp_path / "b.pt")))
    before, after = (weights.read(tmp_path / name) for name in ("a.bin", "b.pt"))
    before, after = (content.get("model", content) for content in (before, after))
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)


def test_the_papers_own_reader_takes_what_we_write(tmp_path):
    """torch.load, as their scripts call it, and a strict load of exactly their keys."""
    model = generators()["learned"]
    write_generator(model, tmp_path / "a.pt")
    GPT(model.config).load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True)["model"], strict=True)


def test_a_run_can_be_converted_and_its_average_chosen(tmp_path):
    model, ema = make("cnn"), make("cnn")
    with torch.no_grad():
        ema.quant_conv.bias.fill_(2.0)
    weights = {"model": model.state_dict(), "ema": ema.state_dict()}
    checkpoint.save(tmp_path / "run", 5, weights, {}, {"model": model.hub_config(), "data": {}})
    run(ConvertConfig(str(tmp_path / "run"), str(tmp_path / "ema")))
    run(ConvertConfig(str(tmp_path / "run"), str(tmp_path / "raw.pt"), weights="model"))
    same(tokenizer.load(tmp_path / "ema"), ema)
    same(tokenizer.load(tmp_path / "raw.pt"), model)


def test_what_is_there_is_not_overwritten_and_nothing_half_written_stays(tmp_path, monkeypatch):
    write_tokenizer(make("cnn"), tmp_path / "a.pt")
    with pytest.raises(UserError, match="exists"):
        run(ConvertConfig(str(tmp_path / "a.pt"), str(tmp_path / "a.pt")))
    (tmp_path / "folder.partial").mkdir()
    (tmp_path / "folder.partial/old").touch()
    run(ConvertConfig(str(tmp_path / "a.pt"), str(tmp_path / "folder")))
    assert {path.name for path in (tmp_path / "folder").iterdir()} == FILES

    def full(*_args: object, **_keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.hub.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        run(ConvertConfig(str(tmp_path / "a.pt"), str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.pt", "b"], ["--source", "a.pt", "--out", "b"]),
        (["a.pt", "--out", "b", "--weights", "ema"], ["--source", "a.pt", "--out", "b", "--weights", "ema"]),
        (["source=a", "out=b"], ["source=a", "out=b"]),
    ],
)
def test_the_command_takes_two_words(words, expected):
    assert convert.with_positions(words, ("source", "out")) == expected


def test_too_many_words_are_refused():
    with pytest.raises(UserError, match="expected SOURCE OUT"):
        convert.with_positions(["a", "b", "c"], ("source", "out"))


def test_the_command_runs(tmp_path):
    write_tokenizer(make("cnn"), tmp_path / "a.pt")
    command = [sys.executable, "-m", "autoregressive.convert", str(tmp_path / "a.pt"), str(tmp_path / "folder")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "a tokenizer of " in done.stdout and (tmp_path / "folder/model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------------- the hub


def test_save_and_from_pretrained(tmp_path):
    model = make("hybrid_1d")
    model.save_pretrained(tmp_path / "vq")
    again = Tokenizer.from_pretrained(tmp_path / "vq")
    same(model, again)
    assert again.config == model.config
    for name, generator in generators().items():
        generator.save_pretrained(tmp_path / name)
        again = type(generator).from_pretrained(str(tmp_path / name))
        same(generator, again)
        assert again.config == generator.config


def test_push_to_hub_uploads_the_same_folder(tmp_path, monkeypatch):
    """With the hub's client replaced: no request leaves this test."""
    uploaded = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def create_repo(self, repo_id: str, **_options: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_options: object) -> str:
            uploaded[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = make("cnn")
    assert model.push_to_hub("someone/vq") == "https://hub/someone/vq"
    assert set(uploaded["someone/vq"]) == FILES
    for name, content in uploaded["someone/vq"].items():
        (tmp_path / name).write_bytes(content)
    same(tokenizer.load(tmp_path), model)


def test_the_card_has_the_figures_of_these_weights_alone(tmp_path):
    run_folder = toys.save_tokenizer(tmp_path / "run")
    about = {"weights_sha256": checkpoint.fingerprint(checkpoint.resolve_folder(run_folder)), "parameters": 10}
    protocol = {
        "guidance": None, "images": 5, "features": {}, "labels": None, "precision": "none", "num_tokens": [16],
    }
    for name, psnr, sha in (("mine", 21.5, about["weights_sha256"]), ("other", 99.9, "0123456789abcdef")):
        record = {
            "question": {"job": "reconstruction"}, "tokens": {"16": {"psnr": psnr}}, "flags": [],
            "protocol": {**protocol, "checkpoints": {"tokenizer": {**about, "weights_sha256": sha}}},
            "environment": {"git_commit": None, "command": f"measure {name}"},
        }  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(record))
    model = tokenizer.load(run_folder)
    options = {"results": str(tmp_path), "license": "cc-by-4.0"}
    model.save_pretrained(tmp_path / "saved", model_card_kwargs=options)
    told = (tmp_path / "saved/README.md").read_text()
    assert "license: cc-by-4.0" in told and "library_name: image-token-lab" in told and "pipeline_tag:" in told
    assert "16 tokens per image, 32 x 32 pixels, a codebook of 64 codes" in told
    assert "21.5" in told and "measure mine" in told and "99.9" not in told
    model.save_pretrained(tmp_path / "plain")
    assert "There is no result record" in (tmp_path / "plain/README.md").read_text()
    autoregressive.load(toys.save_generator(tmp_path / "gpt")).save_pretrained(tmp_path / "gpt_saved")
    assert "Trained on 3 classes (apple, bird, cat)" in (tmp_path / "gpt_saved/README.md").read_text()


def test_a_hub_id_is_fetched_into_the_cache(tmp_path, monkeypatch):
    make("cnn").save_pretrained(tmp_path / "snapshot")
    asked = []

    def download(repo_id: str, name: str, **_options: object) -> str:
        asked.append((repo_id, name))
        return str(tmp_path / "snapshot" / name)

    monkeypatch.setattr("common.download.hf_hub_download", download)
    same(tokenizer.load("someone/vq"), make("cnn"))
    same(Tokenizer.from_pretrained(str(tmp_path / "snapshot")), make("cnn"))
    assert asked == [("someone/vq", "config.json"), ("someone/vq", "model.safetensors")]


def test_a_hub_id_that_cannot_be_had_is_one_sentence():
    with pytest.raises(UserError, match="no file or folder 'someone/nothing-here' here") as caught:
        tokenizer.load("someone/nothing-here")
    assert "\n" not in str(caught.value)
