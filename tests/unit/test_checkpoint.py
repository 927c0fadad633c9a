"""Checkpoints are whole or absent, and say what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from common import checkpoint, download
from common.errors import UserError


def save(run: Path, step: int, value: float = 0.0) -> Path:
    weights = {"model": {"a": torch.full((2, 3), value), "b": torch.tensor([step])}}
    return checkpoint.save(run, step, weights, {"optimizer": {"k": torch.tensor([value])}}, {"model": {"x": 1}})


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 5, 1.5)
    assert folder == checkpoint.newest(tmp_path) == checkpoint.resolve_folder(tmp_path)
    assert checkpoint.read_weights(folder, "model")["a"].eq(1.5).all()
    assert checkpoint.read_state(folder)["optimizer"]["k"].item() == 1.5
    assert checkpoint.read_config(folder) == {"model": {"x": 1}}
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    if damage == "cut":
        file = bad / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        (bad / "state.pt").unlink()
    else:
        (bad / "manifest.json").write_text("{")
    assert checkpoint.newest(tmp_path) == good
    with pytest.raises(UserError):
        checkpoint.resolve_folder(bad)


def test_a_checkpoint_whose_content_changed_is_set_aside(tmp_path: Path) -> None:
    """The size is right, so only the hash tells."""
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    content = bytearray((bad / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bad / "model.safetensors").write_bytes(content)
    assert checkpoint.is_complete(bad) and checkpoint.damaged(bad) == ["model.safetensors"]
    assert checkpoint.recover(tmp_path) == (good, [bad.with_name("0000002.damaged")])
    assert not bad.exists()


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, milestone_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 5, 6]


def test_a_failed_write_leaves_earlier_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(tmp_path, 2)
    assert checkpoint.newest(tmp_path) == good
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [good.name]


def test_disagreements_are_listed_in_one_message() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tensors = dict(module.state_dict())
    tensors.pop("1.bias")
    tensors |= {"extra": torch.zeros(1), "0.weight": torch.zeros(5, 5)}
    with pytest.raises(UserError) as caught:
        checkpoint.load_into(module, tensors, "file")
    said = str(caught.value)
    assert "1.bias" in said and "extra" in said and "0.weight: file (5, 5), model (3, 2)" in said


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    same, again, other = (save(tmp_path / name, 1, value) for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    assert checkpoint.fingerprint(same) == checkpoint.fingerprint(again) != checkpoint.fingerprint(other)
    assert set(json.loads((same / "manifest.json").read_text())["files"]) == {
        "config.json",
        "model.safetensors",
        "state.pt",
    }


def test_a_misspelt_path_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "fetch", lambda repo_id: pytest.fail(f"asked the hub for {repo_id}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/my_tokenizer").mkdir(parents=True)
    with pytest.raises(UserError, match=r"at 'results/my_tokeniser' \(did you mean 'results/my_tokenizer'"):
        checkpoint.resolve_folder("results/my_tokeniser")
    for text in ("results/my_tokenizer", "checkpoints/vq.pt", "./vq/model", "../vq", "/vq/model", "model"):
        with pytest.raises(UserError, match="no checkpoint at"):
            checkpoint.resolve_folder(text)
    assert download.is_repo_id("owner/vq-1.0")


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would retry for half a minute; files in the cache are used."""
    asked: list[bool] = []

    def cached(repo_id: str, name: str, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        return f"/cache/{repo_id}/{name}"

    monkeypatch.setattr(download, "hf_hub_download", cached)
    monkeypatch.setattr(download.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert download.fetch("owner/vq") == Path("/cache/owner/vq") and asked == [True, True]


def test_a_hub_folder_may_hold_one_plain_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_plain(repo_id: str, name: str) -> str:
        if name != "pytorch_model.bin":
            raise EntryNotFoundError("404")
        return f"/cache/{name}"

    monkeypatch.setattr(download, "hf_hub_download", only_plain)
    monkeypatch.setattr(download, "_reachable", lambda: True)
    assert download.fetch("owner/vq") == Path("/cache/pytorch_model.bin")
