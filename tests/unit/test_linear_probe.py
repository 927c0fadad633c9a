"""Linear probes: right on one rank and two, frozen features, resumable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor

import autoregressive
import tokenizer as tokenizers
from common import checkpoint, config, dist
from common.data import ImageFolder
from common.errors import UserError
from common.images import from_pixels
from evaluations import linear_probe
from evaluations.linear_probe import FLAGS, Lars, Probe, ProbeConfig, accuracy
from evaluations.probe_features import Features, generator_features, tokenizer_features
from tests import toys

ALONE = dist.World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and held_out/ (classes of unequal size), vq/, gpt/."""
    root = tmp_path_factory.mktemp("probe")
    toys.write_images(root / "images", counts=(8, 3, 5))
    toys.write_images(root / "held_out", counts=(2, 1, 4))
    toys.save_tokenizer(root / "vq")
    toys.save_generator(root / "gpt")
    return root


def settings(made: Path, out: Path, *words: object) -> ProbeConfig:
    common = [
        "--vq-ckpt", made / "vq", "--data-path", made / "images", "--val-path", made / "held_out", "--out", out,
        "--batch-size", 8, "--epochs", 6, "--warmup-epochs", 1, "--lr", 1, "--device", "cpu", "--log-every", 1,
    ]
    return config.parse(ProbeConfig, [str(word) for word in (*common, *words)], aliases=FLAGS)


def one_hot(images: Tensor) -> Tensor:
    """The label of an image of `toys.write_images`: its strongest colour."""
    return F.one_hot(images.mean(dim=(2, 3)).argmax(dim=1), 3).float()


def _rank(rank: int, ranks: int, made: Path, out: Path, port: int) -> None:
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
    world = dist.init("cpu")
    # LARS moves a matrix by thousandths of itself, so even this takes a while: two hundred steps of a moment each.
    asked = settings(made, out, "--batch-size", 8 // ranks, "--epochs", 100, "--warmup-epochs", 10, "--lr", 10)
    linear_probe.train_and_measure(asked, world, Features(one_hot, 3), 32)
    dist.close()


def test_one_hot_labels_are_told_apart_on_one_and_two_ranks_alike(made: Path, tmp_path: Path, free_port: int) -> None:
    """Seven held-out images on two ranks: a sum divided twice, or by padded counts, would not give 7 of 7."""
    _rank(0, 1, made, tmp_path / "one", free_port)
    torch.multiprocessing.spawn(_rank, (2, made, tmp_path / "two", free_port), nprocs=2)
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert [(found["accuracy"], found["correct"], found["images"]) for found in (one, two)] == [(1.0, 7, 7)] * 2
    weights = [checkpoint.read_weights(checkpoint.newest(tmp_path / name), "model") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][key].float(), weights[1][key].float(), atol=1e-6) for key in weights[0])


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_accuracy_counts_what_is_right(made: Path, shown: int) -> None:
    """A probe that always says class `shown` is right on exactly that class's images."""
    probe = Probe(3, 3)
    with torch.no_grad():
        probe.linear.weight.zero_()
        probe.linear.bias.copy_(F.one_hot(torch.tensor(shown), 3))
    data = ImageFolder(made / "held_out", 32)
    for size in (2, 7):
        found = accuracy(probe, Features(one_hot, 3), data, ALONE, "none", size)
        assert found == {"correct": (2, 1, 4)[shown], "images": 7}


def test_a_probe_of_a_generator_from_the_command_line(made: Path, tmp_path: Path) -> None:
    found = linear_probe.run(
        settings(made, tmp_path, "--gpt-ckpt", made / "gpt", "--gpt-model", "tiny", "--epochs", 20)
    )
    assert found["images"] == 7 and found["accuracy"] == found["correct"] / 7
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] == pytest.approx(np.log(3), abs=0.1)
    measured = linear_probe.run(
        settings(made, tmp_path / "again", "--gpt-ckpt", made / "gpt", "--eval", "--lin-probe-ckpt", tmp_path)
    )
    assert measured["correct"] == found["correct"]


def test_resume_repeats_the_uninterrupted_run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--ckpt-epoch", 3, "--fix-dim"]
    linear_probe.run(settings(made, tmp_path / "whole", *words))
    step, taken = linear_probe.ProbeTrainee.step, []

    def dies(self: Any, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        taken.append(number)
        if len(taken) == 9:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(linear_probe.ProbeTrainee, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        linear_probe.run(settings(made, tmp_path / "parts", *words))
    linear_probe.run(settings(made, tmp_path / "parts", *words))
    assert taken == [*range(9), *range(6, 12)]
    whole, parts = (
        checkpoint.read_weights(checkpoint.newest(tmp_path / run), "model") for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


TWO_DIMENSIONAL = {
    "layout": {"num_tokens": 16, "redundant": 0},
    "encoder": {"name": "hybrid_2d", "cnn": {**toys.CNN, "multipliers": [1, 1]}, "transformer": toys.WIDTHS},
    "decoder": {**toys.TOKENIZER["decoder"], "name": "hybrid_2d"},
}
CONVOLUTIONAL = {
    "layout": {"num_tokens": 16, "redundant": 0},
    "encoder": {"name": "cnn", **toys.CNN}, "decoder": {"name": "cnn", **toys.CNN},
}


@pytest.mark.parametrize("which", ["encoder", "fix_dim", "decoder"])
@pytest.mark.parametrize("changes", [{}, TWO_DIMENSIONAL], ids=["1d", "2d"])
def test_features_of_a_tokenizer(tmp_path: Path, which: str, changes: dict[str, Any]) -> None:
    model = tokenizers.load(toys.save_tokenizer(tmp_path / "vq", **changes))
    features = tokenizer_features(model, which)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = features.read(images)
        assert whole.shape == (3, features.width) and torch.isfinite(whole).all()
        assert torch.allclose(features.read(images[1:2]), whole[1:2], atol=1e-5)
        if which == "encoder" and not changes:
            tokens = model.encoder.transformer.features(model.encoder.cnn(images))
            assert torch.allclose(whole, tokens[:, :16].mean(dim=1))  # the 8 redundant ones are left out
            few = tokenizer_features(model, which, 4).read(images)
            assert torch.allclose(few, tokens[:, :4].mean(dim=1))


def test_features_of_a_generator_do_not_change_between_training_and_evaluation(made: Path) -> None:
    model, tokenizer = autoregressive.load(made / "gpt"), tokenizers.load(made / "vq")
    features = generator_features(model, tokenizer, None)
    images = from_pixels(torch.from_numpy(np.stack([ImageFolder(made / "images", 32)[i]["pixels"] for i in (0, 9)])))
    with torch.no_grad():
        first, again = features.read(images), features.read(images)
        codes = tokenizer.encode(images)
        expected = model.features(codes, torch.full((2,), 3), model.num_layers // 2).mean(dim=1)
    assert torch.equal(first, again) and torch.equal(first, expected) and features.width == model.width
    assert not any(value.requires_grad for value in (*model.parameters(), *tokenizer.parameters()))


def test_lars_takes_the_papers_steps() -> None:
    """Two steps by hand: a matrix is scaled by 0.001 |w| / |g + decay w|, a vector is not, momentum 0.9."""
    matrix, vector = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    solver = Lars([matrix, vector], lr=2.0, weight_decay=0.5)
    by_hand = {"matrix": matrix.detach().clone(), "vector": vector.detach().clone()}
    momentum = {"matrix": torch.zeros(1, 2), "vector": torch.zeros(2)}
    for gradient in (torch.tensor([0.5, -1.0]), torch.tensor([1.5, 2.0])):
        matrix.grad, vector.grad = gradient[None].clone(), gradient.clone()
        solver.step()
        decayed = gradient[None] + 0.5 * by_hand["matrix"]
        scaled = decayed * 0.001 * by_hand["matrix"].norm() / decayed.norm()
        for name, update in (("matrix", scaled), ("vector", gradient)):
            momentum[name] = 0.9 * momentum[name] + update
            by_hand[name] = by_hand[name] - 2.0 * momentum[name]
    assert torch.allclose(matrix, by_hand["matrix"]) and torch.allclose(vector, by_hand["vector"])


def test_what_does_not_fit_is_one_sentence(made: Path, tmp_path: Path) -> None:
    cnn = toys.save_tokenizer(tmp_path / "cnn", **CONVOLUTIONAL)
    rar = toys.save_generator(tmp_path / "rar", name="rar")
    toys.write_images(tmp_path / "held_out")
    (tmp_path / "held_out/cat").rename(tmp_path / "held_out/dog")
    for words, message in (
        (["data_path=null"], "images to train on"), (["--num-code", 17], "1 to 16"), (["features=odd"], "fix_dim"),
        (["--lin-probe-ckpt", tmp_path], "add --eval"), (["--vq-ckpt", cnn], "--fix-dim"),
        (["--gpt-ckpt", rar], "RAR offers none"), (["--gpt-ckpt", made / "gpt", "--n-layer", 3], "2 blocks"),
        (["--val-path", tmp_path / "held_out", "--epochs", 1], "dog"),
    ):
        with pytest.raises(UserError, match=message):
            linear_probe.run(settings(made, tmp_path / "out", *words))


def test_images_of_some_classes_keep_their_numbers(made: Path, tmp_path: Path) -> None:
    """The accuracy on all classes is that on one of them and that on the others, together."""
    learns = ["--epochs", 40, "--lr", 10]
    whole = linear_probe.run(settings(made, tmp_path / "out", *learns))
    toys.write_images(tmp_path / "held_out", counts=(2, 1, 4))
    found = []
    for keep in ({"apple"}, {"bird", "cat"}):
        part = tmp_path / "-".join(sorted(keep))
        part.mkdir()
        for name in keep:
            (tmp_path / "held_out" / name).rename(part / name)
        found.append(linear_probe.run(settings(made, tmp_path / "out", *learns, "--val-path", part)))
    assert sum(each["correct"] for each in found) == whole["correct"] and whole["correct"] >= 5


def test_another_probe_is_not_resumed(made: Path, tmp_path: Path) -> None:
    linear_probe.run(settings(made, tmp_path, "--epochs", 1))
    with pytest.raises(UserError, match="another model"):
        linear_probe.run(settings(made, tmp_path, "--epochs", 1, "--fix-dim"))
