"""Pairs and post-training, for every kind of tokenizer with a generator it is published with.

Slow: 2,000 pairs, the job killed twice: python -m pytest -m slow tests/unit/test_post_training.py
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenizer as tokenizers
from autoregressive import make_pairs
from autoregressive.config import PairsConfig
from autoregressive.make_pairs import POLICIES, draw_keep
from autoregressive.paper_flags import PAIRS_FLAGS
from common import checkpoint, config
from common.config import build
from common.errors import UserError
from common.pairs import PairFolder, PairWriter
from tokenizer import train as training
from tokenizer.config import TokenizerConfig, TrainConfig
from tokenizer.frozen_codes import codes_fingerprint
from tokenizer.model import Tokenizer
from tokenizer.paper_flags import TRAIN_FLAGS

ROOT = Path(__file__).parents[2]
CNN = {"channels": 16, "multipliers": [1, 1], "patch": 2}
VIT = {"width": 32, "layers": 1, "heads": 2}
PAPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "retok_gpt": (
        {
            "z_channels": 32, "layout": {"num_tokens": 16, "redundant": 8},
            "encoder": {"name": "tokenizer.tiny:Tiny1dEncoder", "cnn": CNN, "transformer": VIT},
            "decoder": {
                "name": "tokenizer.tiny:Tiny1dDecoder", "cnn": {**CNN, "adaptive_norm": False}, "transformer": VIT,
                "semantic_head": None,
            },
        },
        {"name": "gpt", "size": "tiny", "positions": "learned"},
    ),
    "llamagen_gpt": (
        {
            "z_channels": 16, "encoder": {"name": "tokenizer.tiny:TinyCnnEncoder", **CNN},
            "decoder": {
                "name": "tokenizer.tiny:TinyCnnDecoder", **CNN, "adaptive_norm": False, "depth_to_space": False,
            },
        },
        {"name": "gpt", "size": "tiny", "positions": "rope2d"},
    ),
    "robustok_rar": (
        {
            "z_channels": 32, "layout": {"num_tokens": 16},
            "encoder": {"name": "dino_vit", **VIT, "patch": 4}, "decoder": {"name": "dino_vit", **VIT, "patch": 4},
        },
        {"name": "rar", "size": "tiny"},
    ),
}  # fmt: skip
CODES = {"codebook_size": 32, "num_tokens": 16}


def save(folder: Path, model: torch.nn.Module, settings: dict[str, Any]) -> None:
    checkpoint.save(folder, 1, {"model": model.state_dict()}, {}, {"model": settings})


def write_images(folder: Path, classes: int, count: int, side: int = 16) -> None:
    rng = np.random.default_rng(0)
    for name in range(classes):
        (folder / f"c{name}").mkdir(parents=True)
        for index in range(count):
            colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((side + 4, side)).save(folder / f"c{name}/{index}.png")


def write_tokenizer(folder: Path, paper: str, seed: int = 0) -> None:
    own = {"image_size": 16, "quantizer": {"name": "vq", "codebook_size": 32}, **PAPERS[paper][0]}
    settings = config.resolve(TokenizerConfig, own, where="model")
    torch.manual_seed(seed)
    model = Tokenizer(settings)
    assert model.num_tokens == 16
    with torch.no_grad():  # random enough that images get different codes
        for value in (*model.encoder.parameters(), *model.quant_conv.parameters()):
            value.add_(0.3 * torch.randn_like(value))
    save(folder, model, dataclasses.asdict(settings))


def write_generator(folder: Path, paper: str, classes: int) -> None:
    torch.manual_seed(1)
    settings = {**PAPERS[paper][1], **CODES, "num_classes": classes}
    model = build("autoregressive.models:GENERATORS", settings)
    with torch.no_grad():  # an untrained head is zero
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    save(folder, model, settings)


@pytest.fixture(scope="module", params=PAPERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ (2 classes of 20), vq/ and gpt/ of one paper."""
    root = tmp_path_factory.mktemp(request.param)
    write_images(root / "images", 2, 20)
    write_tokenizer(root / "vq", request.param)
    write_generator(root / "gpt", request.param, 2)
    return root


def pair_words(root: Path, out: Path, *more: object) -> list[str]:
    words = [
        "--gpt-ckpt", root / "gpt", "--vq-ckpt", root / "vq", "--data-path", root / "images", "--out", out,
        "--cfg-scale", 2.0, "--device", "cpu", "shard=8", "--batch-size", 5, *more,
    ]  # fmt: skip
    return [str(word) for word in words]


def pairs(root: Path, out: Path, *more: object) -> PairFolder:
    make_pairs.run(config.parse(PairsConfig, pair_words(root, out, *more), aliases=PAIRS_FLAGS))
    return PairFolder(out, root / "images")


def own_codes(tokenizer: Path, data: PairFolder) -> np.ndarray:
    pixels = np.stack([data[index]["pixels"] for index in range(len(data))])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return tokenizers.load(tokenizer).encode(images).numpy()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train(root: Path, out: Path, data: Path, *more: object) -> Path:
    stated = root / "post.yaml"
    model = config.resolve(TokenizerConfig, checkpoint.read_config(checkpoint.resolve_folder(root / "vq"))["model"])
    stated.write_text("model:\n" + "".join(f"  {line}\n" for line in config.dump(model).splitlines()))
    words = [
        "--config", stated, "--data-path", root / "images", "--vq-ckpt", root / "vq", "--out", out, "--iterations", 2,
        "--global-batch-size", 4, "--mixed-precision", "none", "--device", "cpu", "--lr", 1e-2, f"data.pairs={data}",
        "freeze=[encoder,quant_conv,quantizer]", "data.crop=center", "data.flip=false", "adversary=null",
        "losses.perceptual=null", *more,
    ]  # fmt: skip
    settings = config.parse(TrainConfig, [str(word) for word in words], aliases=TRAIN_FLAGS)
    training.run(settings)
    return checkpoint.newest(out)


# ---------------------------------------------------------------------------------------------------------- pairs


def test_with_sigma_1_the_pairs_are_the_images_own_codes(made: Path, tmp_path: Path) -> None:
    data = pairs(made, tmp_path / "all", "--sigma", 1)
    assert len(data) == 40 and sorted(data.paths) == sorted(f"c{c}/{i}.png" for c in (0, 1) for i in range(20))
    assert [f"c{label}" for label in data.labels] == [str(path).split("/")[0] for path in data.paths]
    own = own_codes(made / "vq", data)
    assert len(np.unique(own)) > 5
    assert np.array_equal(data.codes, own)


def test_kept_codes_are_the_images_own_and_the_others_are_drawn(made: Path, tmp_path: Path) -> None:
    data = pairs(made, tmp_path / "some", "--sigma", 0.5, "--num-samples", 20)
    shards = [np.load(path) for path in sorted((tmp_path / "some").glob("*.npz"))]
    keep = np.unpackbits(np.concatenate([shard["keep"] for shard in shards]), axis=1)[:, :16].astype(bool)
    own = own_codes(made / "vq", data)
    assert np.array_equal(data.codes[keep], own[keep])
    assert (data.codes[~keep] != own[~keep]).mean() > 0.5
    # A pair depends on the seed and its image, not on the others nor on the batch they came in.
    again = pairs(made, tmp_path / "more", "--sigma", 0.5, "--num-samples", 30, "--batch-size", 4, "shard=11")
    assert again.paths[:20].tolist() == data.paths.tolist() and np.array_equal(again.codes[:20], data.codes)
    other = pairs(made, tmp_path / "other", "--sigma", 0.5, "--seed", 1, "--num-samples", -1)
    assert not np.array_equal(other.codes[:20], data.codes)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The job hears Ctrl-C in the middle of writing its next shard, once `after` shards are written."""
    write, written = PairWriter.write, []

    def failing(self: PairWriter, number: int, *arguments: Any) -> None:
        if len(written) == after:
            (self.path / f"shard-{number:05d}.partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, *arguments)

    monkeypatch.setattr(PairWriter, "write", failing)


def test_interrupted_twice_is_as_if_never_interrupted(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(made, tmp_path / "whole")
    for after in (1, 2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, after)
            pairs(made, tmp_path / "pieces")
        with pytest.raises(UserError, match=r"lacks \d shards"):
            PairFolder(tmp_path / "pieces", made / "images")
    pairs(made, tmp_path / "pieces")
    assert bytes_of(tmp_path / "pieces") == bytes_of(tmp_path / "whole")
    with pytest.raises(UserError, match=r"other settings \(sigma differ"):
        pairs(made, tmp_path / "pieces", "--sigma", 0.6)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_share_of_kept_codes_is_sigma(policy: str) -> None:
    keep = draw_keep(policy, 0.7, 256, 0, np.arange(200))
    error = (0.7 * 0.3 / keep.size) ** 0.5
    assert abs(keep.mean() - 0.7) < (3 * error if policy != "prefix" else 1 / 256)
    if policy == "bernoulli":
        assert abs(keep[:, :128].mean() - keep[:, 128:].mean()) < 6 * error
    else:
        assert keep[:, :50].mean() > 0.9 > 0.6 > keep[:, -50:].mean()
    assert draw_keep(policy, 1.0, 256, 0, np.arange(3)).all()
    assert not draw_keep(policy, 0.0, 256, 0, np.arange(3)).any()
    assert np.array_equal(draw_keep(policy, 0.7, 256, 0, np.arange(5, 9)), keep[5:9])


@pytest.mark.parametrize(("words", "message"), [
    (("--sigma", -0.1), "sigma got -0.1"), (("--keep", "suffix"), "expected bernoulli"),
    (("--num-samples", 41), "40 images"), (("--cfg-schedule", "fast"), "guidance schedule"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_written(
    made: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pairs(made, tmp_path / "pairs", *words)
    assert not (tmp_path / "pairs").exists()


# -------------------------------------------------------------------------------------------------- post-training


def test_only_the_decoder_side_learns_and_encode_stays_bit_identical(made: Path, tmp_path: Path) -> None:
    data = pairs(made, tmp_path / "pairs")
    found = train(made, tmp_path / "post", tmp_path / "pairs")
    before, after = tokenizers.load(made / "vq"), tokenizers.load(found, "model")
    assert codes_fingerprint(before) == codes_fingerprint(after) == data.meta["codes_of"]
    assert np.array_equal(own_codes(made / "vq", data), own_codes(found, data))
    old, new = before.state_dict(), after.state_dict()
    changed = {key.split(".")[0] for key in old if not torch.equal(old[key], new[key])}
    assert changed == {"decoder", "post_quant_conv"}
    ema = tokenizers.load(found, "ema").state_dict()
    assert all(torch.equal(old[key], ema[key]) for key in old if not key.startswith(("decoder", "post_quant_conv")))


def test_the_loss_compares_the_decoded_pair_with_the_real_image(made: Path, tmp_path: Path) -> None:
    data = pairs(made, tmp_path / "pairs", "--sigma", 0.3)
    train(made, tmp_path / "post", tmp_path / "pairs", "--lr", 0, "--global-batch-size", 40, "--log-every", 1)
    model, batch = tokenizers.load(made / "vq"), [data[index] for index in range(40)]
    real = torch.from_numpy(np.stack([item["pixels"] for item in batch])).permute(0, 3, 1, 2) / 127.5 - 1
    decoded = model.decode(torch.from_numpy(np.stack([item["codes"] for item in batch])))
    lines = [json.loads(line) for line in (tmp_path / "post/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train/loss_recon"] == pytest.approx(float((decoded - real).square().mean()), rel=1e-4)
    assert not [key for key in lines[0] if key.startswith(("train/loss_vq", "train/loss_commit"))]


def test_pairs_of_another_tokenizer_and_open_encoders_are_refused(made: Path, tmp_path: Path) -> None:
    pairs(made, tmp_path / "pairs", "--num-samples", 8)
    write_tokenizer(tmp_path / "other", made.name.rstrip("0123456789"), seed=5)
    for words, message in (
        (("--vq-ckpt", tmp_path / "other"), "codes of another tokenizer"),
        (("freeze=[encoder]",), "quant_conv, quantizer would change"),
        (("data.flip=true",), "data.flip=false"),
        (("data.root=/",), "not under"),
    ):
        with pytest.raises(UserError, match=message):
            train(made, tmp_path / "never", tmp_path / "pairs", *words)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("made", ["retok_gpt"], indirect=True)
def test_flexible_tokenizers_train_at_several_kept_lengths(made: Path, tmp_path: Path) -> None:
    pairs(made, tmp_path / "pairs")
    found = train(made, tmp_path / "post", tmp_path / "pairs", "regularizers.nested_dropout.min_tokens=4")
    before, after = tokenizers.load(made / "vq"), tokenizers.load(found, "model")
    codes = torch.randint(32, (2, 16))
    assert all(not torch.equal(before.decode(codes, k), after.decode(codes, k)) for k in (4, 16))
    with pytest.raises(UserError, match=r"regularizers\.shortcut acts on latents"):
        train(made, tmp_path / "never", tmp_path / "pairs", "regularizers.shortcut=true")


@pytest.mark.slow
@pytest.mark.parametrize("made", ["robustok_rar"], indirect=True)
def test_2000_pairs_killed_twice(made: Path, tmp_path: Path) -> None:
    root = tmp_path
    write_images(root / "images", 2, 1000)
    for name in ("vq", "gpt"):
        (root / name).symlink_to(made / name)
    pairs(root, root / "whole", "shard=256", "--batch-size", 64)
    command = [sys.executable, "-m", "autoregressive.make_pairs"]
    command += pair_words(root, root / "pieces", "shard=256", "--batch-size", 64)
    for shards in (2, 5):
        process = subprocess.Popen(command, cwd=ROOT)
        while len(list((root / "pieces").glob("shard-*.npz"))) < shards:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(list((root / "pieces").glob("shard-*.npz"))) < 8
    subprocess.run(command, cwd=ROOT, check=True)
    assert bytes_of(root / "pieces") == bytes_of(root / "whole")
    assert len(PairFolder(root / "pieces", root / "images")) == 2000
