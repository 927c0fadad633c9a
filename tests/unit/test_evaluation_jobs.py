"""The evaluation jobs on tiny untrained models: what they write, refuse, reuse, and that ranks do not matter."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokenizer as tokenizers
from autoregressive.models.gpt import GPT
from autoregressive.paper_flags import SAMPLE_FLAGS
from benchmarks.inception_graph import write_graph
from common import checkpoint, config
from common.data import ImageFolder
from common.errors import UserError
from common.images import from_pixels, to_pixels
from common.numerics import numpy_generator
from evaluations import generation, reconstruction, record, reference
from evaluations.generation import GenerationConfig
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.psnr import psnr
from evaluations.reconstruction import FLAGS, ReconstructionConfig
from evaluations.reference import ReferenceConfig
from evaluations.sample_metrics import Reference
from tests import toys
from tests.toys import read_npz
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

ROOT = Path(__file__).parents[2]
TOKENIZER = {**toys.TOKENIZER, "decoder": {**toys.TOKENIZER["decoder"], "semantic_head": None}}
FD = "fd_efficientnet_lite2"


def save_tokenizer(run: Path, seed: int) -> None:
    torch.manual_seed(seed)
    schema = config.resolve(TokenizerConfig, TOKENIZER, where="model")
    weights = {"model": Tokenizer(schema).state_dict()}
    checkpoint.save(run, 1, weights, {}, {"model": dataclasses.asdict(schema)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ (3 classes, 13 images), vq/ (an untrained tokenizer) and gpt/ (an untrained generator)."""
    root = tmp_path_factory.mktemp("evaluation")
    rng = np.random.default_rng(0)
    for place, (name, count) in enumerate((("apple", 5), ("bird", 4), ("cat", 4))):
        (root / "images" / name).mkdir(parents=True)
        for index in range(count):
            small = Image.fromarray(rng.integers(80 * place, 80 * place + 80, (6, 8, 3), np.uint8))
            small.resize((48, 40), Image.Resampling.BICUBIC).save(root / "images" / name / f"{index}.png")
    save_tokenizer(root / "vq", seed=0)
    gpt = GPT.Config(size="tiny", codebook_size=64, num_tokens=16, num_classes=3)
    torch.manual_seed(0)
    about = {"model": {"name": "gpt", **dataclasses.asdict(gpt)}}
    checkpoint.save(root / "gpt", 1, {"model": GPT(gpt).state_dict()}, {}, about)
    return root


def reconstruct(made: Path, out: Path, *words: object) -> dict:
    given = ["--vq-ckpt", made / "vq", "--data-path", made / "images", "--sample-dir", out, "--device", "cpu", *words]
    return reconstruction.run(config.parse(ReconstructionConfig, [str(word) for word in given], aliases=FLAGS))


def generate(made: Path, out: Path, *words: object, count: int = 6) -> dict:
    given = ["--gpt-ckpt", made / "gpt", "--vq-ckpt", made / "vq", "--sample-dir", out, "--num-fid-samples", count,
             "--frechet", FD, "--reference-path", made / "images", "--device", "cpu", *words]
    return generation.run(config.parse(GenerationConfig, [str(word) for word in given], aliases=SAMPLE_FLAGS))


def torchrun(ranks: int, *words: object) -> None:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    done = subprocess.run(
        [*command, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


# ------------------------------------------------------------------------------------------------ reference


def test_reference_holds_every_crop_once_in_a_seeded_order(made, tmp_path):
    packed = reference.run(ReferenceConfig(data_path=str(made / "images"), sample_dir=str(tmp_path), image_size=32))
    assert packed == tmp_path / "val_imagenet.npz"
    crops = [item["pixels"] for item in (ImageFolder(made / "images", 32)[i] for i in range(13))]
    for index, crop in enumerate(crops):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "val_imagenet" / f"{index:06d}.png")), crop)
    order = numpy_generator(0, "order").permutation(13)
    np.testing.assert_array_equal(read_npz(packed), np.stack([crops[i] for i in order]))

    reference.run(
        ReferenceConfig(data_path=str(made / "images"), sample_dir=str(tmp_path), image_size=32, num_images=5)
    )
    assert len(list((tmp_path / "val_imagenet").iterdir())) == 5 and len(read_npz(packed)) == 5


# ------------------------------------------------------------------------------------------------ reconstruction


def test_reconstruction_measures_what_the_npz_holds(made, tmp_path):
    results = reconstruct(
        made, tmp_path, "--num-tokens", "[4,16]", "--frechet", FD, "--perceptual", "perceptual_efficientnet_lite0"
    )
    dataset, tokenizer = ImageFolder(made / "images", 32), tokenizers.load(made / "vq")
    originals = from_pixels(torch.stack([torch.tensor(dataset[i]["pixels"]) for i in range(13)]))
    codes = tokenizer.encode(originals)
    for k in (4, 16):
        packed = read_npz(tmp_path / f"tokens_{k:04d}.npz")
        np.testing.assert_array_equal(packed, to_pixels(tokenizer.decode(codes[:, :k])))
        mean = psnr(from_pixels(torch.from_numpy(packed)), originals, data_range=2.0).mean().item()
        assert results["tokens"][str(k)]["psnr"] == pytest.approx(mean, rel=1e-6)
        assert results["tokens"][str(k)]["ssim"] < results["tokens"][str(k)]["ssim_data_range_2"]
        assert results["tokens"][str(k)][FD] > 0 and results["tokens"][str(k)]["perceptual_efficientnet_lite0"] > 0
    used = results["codes"]
    assert used["codebook_usage"] == pytest.approx(len(codes.unique()) / 64)
    assert used["usage_per_position"][3] == pytest.approx(len(codes[:, 3].unique()) / 64)
    assert len(list((tmp_path / "previews").glob("*_gt.png"))) == 13 and (tmp_path / "previews" / "grid.png").is_file()
    assert any("50000" in flag for flag in results["flags"])


def test_a_result_is_reused_only_for_the_same_question(made, tmp_path):
    first = reconstruct(made, tmp_path / "out", "--num-images", 4)
    stamp = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    assert reconstruct(made, tmp_path / "out", "--num-images", 4) == first
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == stamp

    save_tokenizer(tmp_path / "other" / "vq", seed=1)  # another checkpoint of the same shape, same output folder
    other = reconstruct(made, tmp_path / "out", "--num-images", 4, "--vq-ckpt", tmp_path / "other" / "vq")
    assert other["tokens"] != first["tokens"]
    assert reconstruct(made, tmp_path / "out", "--num-images", 5)["codes"]["images"] == 5


def test_qualitative_writes_pairs_and_no_npz(made, tmp_path):
    reconstruct(made, tmp_path, "--qualitative", "--quant-way=vq")
    assert len(list((tmp_path / "previews").glob("*_tokens0016.png"))) == 13
    assert not list(tmp_path.glob("*.npz*"))


def test_clear_cache_removes_only_what_the_job_made(made, tmp_path):
    (tmp_path / "mine.npz").write_text("keep")
    reconstruct(made, tmp_path, "--num-images", 4, "--clear-cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.npz", "previews", "results.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-tokens", "[0]"], "1 to 16"),
        (["--num-tokens", "[99]"], "1 to 16"),
        (["--image-size", "256"], "image-size"),
        (["--frechet", "fid"], FD),
        (["--gt-npz-path", "nothing.npz"], r"nothing\.npz.*val\.sh"),
        (["--quant-way", "fsq"], "quant-way"),
        (["--data-path", "nowhere"], "nowhere"),
        (["--vq-ckpt", "nowhere"], "no checkpoint"),
        (["--lpips", "perceptual.vgg_path=nothing.pth"], r"nothing\.pth.*curl"),
    ],
)
def test_reconstruction_errors_name_what_mends_them(made, tmp_path, words, message):
    earlier = tmp_path / "results.json"
    earlier.write_text("{}")
    with pytest.raises(UserError, match=message):
        reconstruct(made, tmp_path, *words)
    assert earlier.read_text() == "{}"


def test_two_ranks_reconstruct_as_one(made, tmp_path):
    words = ["--vq-ckpt", made / "vq", "--data-path", made / "images", "--num-tokens", "[4,16]", "--frechet", FD]
    words += ["--per-proc-batch-size", 3, "--device", "cpu"]
    torchrun(2, "evaluations.reconstruction", *words, "--sample-dir", tmp_path / "two")
    reconstruct(made, tmp_path / "one", "--num-tokens", "[4,16]", "--frechet", FD, "--per-proc-batch-size", 3)
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    np.testing.assert_array_equal(*(read_npz(tmp_path / name / "tokens_0016.npz") for name in ("two", "one")))
    assert two["codes"] == one["codes"]
    for k in ("4", "16"):
        assert two["tokens"][k] == pytest.approx(one["tokens"][k], rel=1e-5)
    assert not list(tmp_path.rglob("*.part-*"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "toy.pb", width=1 / 16)


def test_both_jobs_report_fid_and_how_it_was_made(made, graph, tmp_path):
    words = ["--engine", "torch", "--inception-path", graph, "--gt-npz-path"]
    val, train = (
        reference.run(
            ReferenceConfig(data_path=str(made / "images"), sample_dir=str(tmp_path), image_size=32, split=split)
        )
        for split in ("val", "train")
    )
    rebuilt = reconstruct(made, tmp_path / "rec", *words, val)
    assert rebuilt["tokens"]["16"]["rfid"] > 0 and (tmp_path / "rec" / "tokens_0016.txt").is_file()
    only_fid = ("--frechet", "null", "--reference-path", "null")
    made_up = generate(made, tmp_path / "gen", *words, train, *only_fid)
    assert {"fid", "sfid", "precision", "recall", "precision_float64", "inception_score"} <= set(made_up["metrics"])
    assert "class_accuracy" not in made_up["metrics"]

    for results, against, split in ((rebuilt, val, "val"), (made_up, train, "train")):
        told = results["protocol"]
        inception = told["features"]["inception"]
        assert inception["engine"] == "torch" and inception["sha256"] == checkpoint.sha256(graph)
        assert inception["reference"]["sha256"] == checkpoint.sha256(against)
        assert inception["reference"]["images"] == 13 and inception["reference"]["about"]["split"] == split
        assert inception["reference"]["statistics"]["source"] == "computed from its images"
        assert told["checkpoints"]["tokenizer"]["parameters"] > 1000 and told["num_tokens"] == [16]
        assert told["images"] in (6, 13) and told["precision"] == "none" and told["metrics"]
        assert results["environment"]["git_commit"] == record.git_commit()
        assert any("50000" in flag for flag in results["flags"])
    told = made_up["protocol"]
    assert (told["labels"], told["seed"], told["guidance"]["schedule"]) == ("balanced", 0, "constant")
    assert {about["weights_sha256"] for about in told["checkpoints"].values()} == {
        record.checkpoint(made / name, "model")["weights_sha256"] for name in ("gpt", "vq")
    }
    # The other way round, both stop before they do anything.
    with pytest.raises(UserError, match="--split val"):
        reconstruct(made, tmp_path / "mixed", *words, train)
    with pytest.raises(UserError, match="--split train"):
        generate(made, tmp_path / "mixed", *words, val, *only_fid)
    assert not (tmp_path / "mixed").exists()
    # Samples measured later bring their own record.
    given = ["--samples", made_up["samples"], "--sample-dir", tmp_path / "later", *words, train, "--device", "cpu"]
    later = generation.run(config.parse(GenerationConfig, [str(w) for w in given], aliases=SAMPLE_FLAGS))
    assert later["protocol"]["guidance"] == told["guidance"] and later["protocol"]["labels"] == "balanced"
    assert later["metrics"] == made_up["metrics"]


def test_nan_weights_are_an_error_not_black_images(made, tmp_path):
    vq = tmp_path / "vq"
    schema = config.resolve(TokenizerConfig, TOKENIZER, where="model")
    weights = Tokenizer(schema).state_dict()
    weights[next(name for name in reversed(weights) if name.startswith("decoder."))].fill_(float("nan"))
    checkpoint.save(vq, 1, {"model": weights}, {}, {"model": dataclasses.asdict(schema)})
    with pytest.raises(UserError, match="NaN"):
        reconstruct(made, tmp_path / "out", "--num-images", 2, "--vq-ckpt", vq)


def test_fewer_images_than_ranks(made, tmp_path):
    words = ["--vq-ckpt", made / "vq", "--data-path", made / "images", "--num-images", 1, "--device", "cpu"]
    torchrun(2, "evaluations.reconstruction", *words, "--sample-dir", tmp_path)
    assert read_npz(tmp_path / "tokens_0016.npz").shape == (1, 32, 32, 3)


# ------------------------------------------------------------------------------------------------ generation


def test_search_keeps_only_what_it_still_needs(made, tmp_path, monkeypatch):
    """With --clear-cache the losers' images go at once, the winner's are reused, and a stranger's file stays."""
    drawn: list[int] = []
    draw = generation.ImageSampler.codes

    def count(self, labels, *rest):
        drawn.append(len(labels))
        return draw(self, labels, *rest)

    def measure(self, question, *_):
        return {"metrics": {FD: (question["guidance"]["scale"] - 1.5) ** 2}}, [], None

    monkeypatch.setattr(generation.ImageSampler, "codes", count)
    monkeypatch.setattr(generation.Evaluation, "_measure", measure)
    (tmp_path / "mine.txt").write_text("keep")
    words = ["--search", "--search-num-images", 4, "--cfg-scale", 1.5, "--clear-cache"]
    results = generate(made, tmp_path, *words)
    assert results["question"]["guidance"]["scale"] == 1.5
    assert sum(drawn) == 4 + 4 + 4 + 2  # 1.5, 1.75, 1.25, and the winner's other two images
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".results.json"))
    assert left == ["mine.txt", "results.json", "search.csv", "search.png"]


def test_two_ranks_sample_and_measure_as_one(made, tmp_path):
    """Seven images on two ranks: the same `.npz` content, in the same order."""
    given = ["--gpt-ckpt", made / "gpt", "--vq-ckpt", made / "vq", "--num-fid-samples", 7, "--frechet", FD]
    given += ["--reference-path", made / "images", "--device", "cpu", "--cfg-scale", 1.5]
    torchrun(2, "evaluations.generation", *given, "--per-proc-batch-size", 2, "--sample-dir", tmp_path / "two")
    one = generate(made, tmp_path / "one", "--cfg-scale", 1.5, count=7)
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    with np.load(one["samples"]) as a, np.load(two["samples"]) as b:
        assert a.files == b.files == ["arr_0", "about"]
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert two["protocol"]["checkpoints"].keys() == {"generator", "tokenizer"}


def test_generation_measures_and_logs_a_point_once(made, tmp_path):
    results = generate(made, tmp_path, "--cfg-scale", 1.5, "--held-out-path", made / "images")
    metrics = results["metrics"]
    assert {FD, "fd_mean_colour", "class_accuracy", "probe_accuracy", "fd_held_out"} <= set(metrics)
    assert metrics["probe_accuracy"] == 1 and metrics["fd_held_out"] == pytest.approx(0, abs=1e-6)
    assert len(read_npz(results["samples"])) == 6
    again = generate(made, tmp_path, "--cfg-scale", 1.5, "--held-out-path", made / "images")
    assert again == results
    assert len((tmp_path / "search.csv").read_text().splitlines()) == 2
    generate(made, tmp_path, "--cfg-scale", 1.25, "--held-out-path", made / "images")
    assert len((tmp_path / "search.csv").read_text().splitlines()) == 3


def test_the_mean_colour_distance_is_that_of_flat_images(made, tmp_path):
    reference = Reference(str(made / "images"), FD, 32)
    labels = np.array([0, 1, 2, 1])
    dataset = ImageFolder(made / "images", 32)
    pixels = torch.stack([torch.tensor(dataset[i]["pixels"]) for i in range(13)])
    colours = torch.stack([
        from_pixels(pixels)[torch.tensor(dataset.labels) == label].mean(dim=(0, 2, 3)) for label in range(3)
    ])
    flat = colours[:, :, None, None].expand(-1, -1, 64, 64)[labels]
    with torch.no_grad():
        features = reference.extractor(flat)[0].numpy()
    expected = frechet_distance(reference.gaussian, fit(features))
    assert reference._mean_colour_distance(labels) == pytest.approx(expected, rel=1e-4)


def test_the_reference_labels_follow_the_samples_classes(made, tmp_path):
    """A classifier of two of the classes, judged on the third's absence: numbers are those of the generator."""
    shutil.copytree(made / "images", tmp_path / "some")
    shutil.rmtree(tmp_path / "some" / "apple")
    reference = Reference(str(tmp_path / "some"), FD, 32, classes=["apple", "bird", "cat"])
    assert set(reference.labels) == {1, 2} and reference.classes == ["apple", "bird", "cat"]
    with pytest.raises(UserError, match="bird"):
        Reference(str(tmp_path / "some"), FD, 32, classes=["apple", "cat", "dog"])


def test_search_evaluates_each_point_once_and_resumes(made, tmp_path, monkeypatch):
    """With a convex objective in place of the measurement, the climb ends at its optimum, coarse then full."""
    asked: list[tuple[float, int]] = []

    def measure(self, question, samples, labels):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((question["guidance"]["scale"], question["num_images"]))
        return {"samples": "x", "metrics": {FD: (question["guidance"]["scale"] - 2.1) ** 2}}, [], None

    monkeypatch.setattr(generation.Evaluation, "_measure", measure)
    monkeypatch.setattr(generation.Evaluation, "_samples", lambda *_: (tmp_path / "x.npz", None))
    words = ["--search", "--cfg-schedule", "step", "--search-num-images", 3]
    with pytest.raises(KeyboardInterrupt):
        generate(made, tmp_path, *words, "--cfg-scale", 1.5)
    assert asked == [(1.5, 3), (1.75, 3)]
    asked.append((2.0, 3))  # was interrupted while it was measured
    results = generate(made, tmp_path, *words, "--cfg-scale", 1.5)
    assert asked == [(1.5, 3), (1.75, 3), (2.0, 3), (2.0, 3), (2.25, 3), (2.0, 6)]
    assert results["question"]["guidance"]["scale"] == 2.0
    assert generate(made, tmp_path, *words, "--cfg-scale", 1.5) == results and len(asked) == 6
    (tmp_path / "search.csv").unlink()  # the figures are kept beside each point; the CSV is only their list
    (tmp_path / "search.png").unlink()
    assert generate(made, tmp_path, *words, "--cfg-scale", 1.5) == results and len(asked) == 6
    assert len((tmp_path / "search.csv").read_text().splitlines()) == 6
    assert Image.open(tmp_path / "search.png").size[0] > 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frechet", "null", "--reference-path", "null"], "nothing to measure against"),
        (["--reference-path", "null"], "belong together"),
        (["--search", "--cfg-schedule", "linear"], "constant, step, rectangular"),
        (["--search", "--search-num-images", "99"], "exceeds"),
        (["--samples", "x.npz"], "leave --search and --gpt-ckpt out"),
        (["--gpt-ckpt", "null"], "are needed to sample"),
        (["--frechet", "fid"], FD),
    ],
)
def test_generation_errors_name_what_mends_them(made, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        generate(made, tmp_path, *words)


def test_existing_samples_are_measured_with_their_labels(made, tmp_path):
    first = generate(made, tmp_path / "a")
    labels = Path(first["samples"]).with_suffix("") / "labels.npy"
    words = ["--samples", first["samples"], "--samples-labels", labels, "--frechet", FD, "--reference-path",
             made / "images", "--sample-dir", tmp_path / "b", "--device", "cpu"]
    second = generation.run(config.parse(GenerationConfig, [str(w) for w in words], aliases=SAMPLE_FLAGS))
    assert second["metrics"] == pytest.approx(first["metrics"])
