"""The perturbed Frechet distance: its definition, cell by cell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint, config
from common.errors import UserError
from evaluations import pfid, reconstruction
from evaluations.pfid import FLAGS, LatentNoise, NoisyCell, PfidConfig, perturb_codes
from evaluations.reconstruction import ReconstructionConfig
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer, View

NAME = "fd_efficientnet_lite2"
CNN = {"channels": 16, "multipliers": [1, 1], "patch": 2}
VIT = {"width": 32, "layers": 1, "heads": 2}
MODEL = {
    "image_size": 16, "z_channels": 32, "layout": {"num_tokens": 16, "redundant": 8},
    "encoder": {"name": "tokenizer.tiny:Tiny1dEncoder", "cnn": CNN, "transformer": VIT},
    "decoder": {
        "name": "tokenizer.tiny:Tiny1dDecoder", "cnn": {**CNN, "adaptive_norm": False}, "transformer": VIT,
        "semantic_head": None,
    },
    "quantizer": {"name": "vq", "codebook_size": 32},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("pfid"), np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(12):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((16, 16)).save(root / f"images/{index:02d}.png")
    settings = config.resolve(TokenizerConfig, MODEL, where="model")
    torch.manual_seed(0)
    model = Tokenizer(settings)
    checkpoint.save(root / "vq", 1, {"model": model.state_dict()}, {}, {"model": dataclasses.asdict(settings)})
    return root


def measure(made: Path, out: Path, *more: object) -> dict[str, Any]:
    words = ["--vq-ckpt", made / "vq", "--data-path", made / "images", "--sample-dir", out, "--device", "cpu",
             "--frechet", NAME, *more]  # fmt: skip
    return pfid.run(config.parse(PfidConfig, [str(word) for word in words], aliases=FLAGS))


@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_without_perturbation_it_is_the_distance_of_reconstructions(
    made: Path, tmp_path: Path, precision: str
) -> None:
    words = ("--alphas", "[0.0,1.0]", "--deltas", "[1,8]", "--num-tokens", "[4]", "--precision", precision)
    found = measure(made, tmp_path / "p", *words)
    plain = reconstruction.run(ReconstructionConfig(
        vq_ckpt=str(made / "vq"), data_path=str(made / "images"), sample_dir=str(tmp_path / "r"), device="cpu",
        num_tokens=[4], frechet=NAME, precision=precision,
    ))  # fmt: skip
    entry, expected = found["tokens"]["4"], plain["tokens"]["4"][NAME]
    assert entry["unperturbed"] == {NAME: expected}
    values = {(cell["alpha"], cell["delta"]): cell[f"p{NAME}"] for cell in entry["cells"]}
    assert values[0.0, 1] == values[0.0, 8] == values[1.0, 1] == expected != values[1.0, 8]
    assert entry["mean"] == {f"p{NAME}": pytest.approx(sum(values.values()) / 4)}
    assert "fid" not in str(entry)


@pytest.mark.parametrize("neighbours", ["code", "latent"])
def test_the_batch_does_not_matter(made: Path, tmp_path: Path, neighbours: str) -> None:
    words = ("--alphas", "[0.5]", "--deltas", "[0.25]", "--neighbours", neighbours, "--num-images", 8)
    [cell] = measure(made, tmp_path / "8", *words)["tokens"]["16"]["cells"]
    assert (cell["alpha"], cell["delta"], cell["delta_share"]) == (0.5, 8, 0.25)
    [again] = measure(made, tmp_path / "3", *words, "--per-proc-batch-size", 3)["tokens"]["16"]["cells"]
    assert again == pytest.approx(cell, rel=1e-4)
    [other] = measure(made, tmp_path / "other", *words, "--seed", 1)["tokens"]["16"]["cells"]
    assert other != pytest.approx(cell, rel=1e-3)


@pytest.mark.parametrize("precision", ["none", "bf16"])
@pytest.mark.parametrize(("quantizer", "neighbours"), [
    ({"name": "product", "groups": 2, "part": {"name": "vq_hits", "codebook_size": 32, "codebook_dim": 4}}, "code"),
    ({"name": "product", "groups": 2, "part": {"name": "vq_hits", "codebook_size": 32, "codebook_dim": 4}}, "latent"),
    ({"name": "multi_scale", "scales": [1, 2, 4], "smoothers": 3, "codebook_size": 32}, "code"),
    ({"name": "fsq", "levels": [4, 4, 2]}, "code"),
])  # fmt: skip
def test_every_quantizer_with_codes_can_be_perturbed(
    made: Path, tmp_path: Path, quantizer: dict[str, Any], neighbours: str, precision: str
) -> None:
    """Groups by themselves: each has a codebook, and near codes, of its own."""
    groups = quantizer.get("groups", 1)
    vit = {"name": "dino_vit", "width": 32, "layers": 1, "heads": 2, "patch": 4}
    model = {
        "image_size": 16, "z_channels": 32, "layout": {"num_tokens": 16}, "encoder": {**vit, "groups": groups},
        "decoder": vit, "quantizer": quantizer,
    }  # fmt: skip
    settings = config.resolve(TokenizerConfig, model, where="model")
    torch.manual_seed(0)
    tokenizer = Tokenizer(settings)
    for value in tokenizer.decoder.parameters():  # a new decoder hardly depends on its codes
        torch.nn.init.normal_(value, std=0.2)
    checkpoint.save(tmp_path / "vq", 1, {"model": tokenizer.state_dict()}, {}, {"model": dataclasses.asdict(settings)})
    words = ("--vq-ckpt", tmp_path / "vq", "--alphas", "[0.0,0.9]", "--deltas", "[8]", "--neighbours", neighbours)
    words += ("--precision", precision)
    found = measure(made, tmp_path / "out", *words)
    [entry] = found["tokens"].values()
    still, moved = (cell[f"p{NAME}"] for cell in entry["cells"])
    assert still == entry["unperturbed"][NAME] != moved


def test_a_continuous_tokenizer_bears_noise_on_its_vectors(made: Path, tmp_path: Path) -> None:
    settings = config.resolve(TokenizerConfig, {**MODEL, "quantizer": {"name": "kl", "dim": 4}}, "model")
    torch.manual_seed(0)
    tokenizer = Tokenizer(settings)
    checkpoint.save(tmp_path / "vq", 1, {"model": tokenizer.state_dict()}, {}, {"model": dataclasses.asdict(settings)})
    words = ("--vq-ckpt", tmp_path / "vq", "--num-tokens", "[4,16]", "--rhos", "[0.0,1.0]")
    found = measure(made, tmp_path / "a", *words)
    for entry in found["tokens"].values():
        (still, moved) = entry["cells"]
        assert still["rho"] == 0 and still[f"p{NAME}_c"] == entry["unperturbed"][NAME] != moved[f"p{NAME}_c"]
    again = measure(made, tmp_path / "b", *words, "--per-proc-batch-size", 5)
    assert again["tokens"]["16"]["mean"] == pytest.approx(found["tokens"]["16"]["mean"], rel=1e-4)
    halved = measure(made, tmp_path / "c", *words, "--precision", "bf16")["tokens"]["16"]["mean"]
    assert found["tokens"]["16"]["mean"] != halved == pytest.approx(found["tokens"]["16"]["mean"], rel=0.1)


def test_noise_is_measured_in_each_channels_deviation() -> None:
    """Channel c of the vectors is c + 1 times a unit normal; the noise that is added has rho times that."""

    class Stub:
        codebook_dim, is_1d = 3, True

        def encode_vectors(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, :1] * torch.arange(1, 4)[:, None, None]

        def decode_vectors(self, vectors: torch.Tensor, num_tokens: int) -> Any:
            return View(vectors)

    stub, images = Stub(), torch.randn(400, 3, 1, 64, generator=torch.Generator().manual_seed(0))
    noise = LatentNoise(PfidConfig(), stub, [NoisyCell(64, 0.5)], images.split(100))
    [decoded] = noise(np.arange(400), images)
    added = decoded - stub.encode_vectors(images)
    assert added.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.5, 1.0, 1.5], rel=0.02)


def test_quantizers_without_a_latent_per_code_are_refused_for_latent_neighbours(made: Path, tmp_path: Path) -> None:
    settings = config.resolve(TokenizerConfig, {**MODEL, "quantizer": {"name": "fsq", "levels": [4, 4, 2]}}, "model")
    weights = Tokenizer(settings).state_dict()
    checkpoint.save(tmp_path / "vq", 1, {"model": weights}, {}, {"model": dataclasses.asdict(settings)})
    with pytest.raises(UserError, match="--neighbours code"):
        measure(made, tmp_path / "out", "--vq-ckpt", tmp_path / "vq", "--neighbours", "latent")


def test_a_code_is_redrawn_among_the_nearest_and_may_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(50, (100, 64), generator=generator)
    near = (codes.unsqueeze(2) + torch.arange(10)) % 50
    wrong = perturb_codes(codes, near, 0.5, 10, torch.rand(2, 100, 64, generator=generator))
    assert (wrong == codes).float().mean() == pytest.approx(1 - 0.5 * 0.9, abs=0.02)
    assert set(((wrong - codes) % 50).unique().tolist()) == set(range(10))


def test_the_pool_of_all_codes_makes_them_uniform() -> None:
    near = torch.arange(50).expand(100, 64, 50)
    wrong = perturb_codes(torch.zeros(100, 64, dtype=torch.int64), near, 1.0, 50, torch.rand(2, 100, 64))
    counts = torch.bincount(wrong.flatten(), minlength=50).float()
    assert ((counts - 128).abs() < 5 * 128**0.5).all()


@pytest.mark.parametrize(("words", "message"), [
    (("--deltas", "[33]"), "deltas got"), (("--alphas", "[1.5]"), "alphas got"), (("--alphas", "[]"), "nothing"),
    (("--num-tokens", "[17]"), "num-tokens got"), (("--neighbours", "pixel"), "latent or code"),
    (("--frechet", "null"), "nothing to measure"),
])  # fmt: skip
def test_mistakes_are_named(made: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(made, tmp_path, *words)
