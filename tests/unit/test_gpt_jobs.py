"""Extraction, training and sampling of the generator on a few random images: the jobs themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

import autoregressive
import tokenizer as tokenizers
from autoregressive import extract_codes, sample, train
from autoregressive.config import ExtractConfig, SampleConfig, TrainConfig
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.paper_flags import EXTRACT_FLAGS, SAMPLE_FLAGS, TRAIN_FLAGS
from common import checkpoint, config, dist, shards
from common.codes import ChunkedWriter, CodeStore
from common.data import ImageFolder
from common.errors import UserError
from common.images import center_crop, from_pixels, read_image
from tests import toys
from tests.toys import read_npz
from tokenizer.config import TokenizerConfig
from tokenizer.model import Tokenizer

TOKENIZER = {**toys.TOKENIZER, "decoder": {**toys.TOKENIZER["decoder"], "semantic_head": None}}
STILL = [f"model.{kind}_dropout=0" for kind in ("token", "residual", "ffn")]


def parse(schema: type, aliases: dict[str, Any], *words: object) -> Any:
    return config.parse(schema, [str(word) for word in words], aliases=aliases)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, vq/ (an untrained tokenizer), codes/ and gpt/ (a generator after four steps)."""
    root = tmp_path_factory.mktemp("gpt")
    rng = np.random.default_rng(0)
    for name, count in (("apple", 4), ("bird", 3), ("cat", 4)):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for index in range(count):
            colours = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((44, 50)).save(folder / f"{index}.png")
    torch.manual_seed(0)
    settings = config.resolve(TokenizerConfig, TOKENIZER)
    model = Tokenizer(settings)
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.mul_(5)  # an untrained encoder gives every image the same few codes
        model.quant_conv.bias.zero_()
    checkpoint.save(root / "vq", 1, {"model": model.state_dict()}, {}, {"model": dataclasses.asdict(settings)})
    extract_codes.run(parse(
        ExtractConfig, EXTRACT_FLAGS, "--data-path", root / "images", "--vq-ckpt", root / "vq", "--code-path",
        root / "codes", "--device", "cpu", "--batch-size", 4, "chunk=4", "--quant-way=vq", "--resume",
    ))
    train.run(train_config(root, root / "gpt"))
    return root


def train_config(root: Path, out: Path, *more: object) -> TrainConfig:
    return parse(
        TrainConfig, TRAIN_FLAGS, "--code-path", root / "codes", "--val-code-path", root / "codes", "--out", out,
        "--gpt-model", "tiny", "--global-batch-size", 4, "--iterations", 4, "--lr", 1e-3, "--device", "cpu",
        "--mixed-precision", "none", "--log-every", 1, "--ckpt-every", 2, "run.validate_every=4", *STILL, *more,
    )


def sample_config(root: Path, out: Path, *more: object) -> SampleConfig:
    return parse(
        SampleConfig, SAMPLE_FLAGS, "--gpt-ckpt", root / "gpt", "--vq-ckpt", root / "vq", "--sample-dir", out,
        "--num-fid-samples", 7, "--cfg-scale", 2.0, "--cfg-schedule", "step", "--step-start-ratio", 0.18,
        "--precision", "none", "--global-seed", 3, "--device", "cpu", *more,
    )


# ---------------------------------------------------------------------------------------------------- extraction


def test_codes_belong_to_their_images(made: Path) -> None:
    store, folder = CodeStore(made / "codes"), ImageFolder(made / "images", 32)
    codes = np.load(made / "codes/codes.npy")
    assert codes.shape == (11, 2, 16) and codes.dtype == np.uint16 and len(np.unique(codes)) > 5
    assert store.labels.tolist() == folder.labels and store.classes == ["apple", "bird", "cat"]
    model = tokenizers.load(made / "vq")
    for index, path in enumerate(folder.paths):
        pixels = torch.from_numpy(np.array(center_crop(read_image(path), 32)))
        both = from_pixels(torch.stack((pixels, pixels.flip(1))))
        assert np.array_equal(model.encode(both).numpy(), codes[index])


def test_tar_shards_give_the_same_store(made: Path, tmp_path: Path) -> None:
    packed = shards.pack(made / "images", tmp_path / "shards", shard_mb=0.01)
    words = ["--data-path", packed, "--vq-ckpt", made / "vq", "--code-path", tmp_path / "codes", "--device", "cpu"]
    extract_codes.run(parse(ExtractConfig, EXTRACT_FLAGS, *words, "--batch-size", 4, "chunk=4"))
    for name in ("codes.npy", "labels.npy", "meta.json"):
        assert (tmp_path / "codes" / name).read_bytes() == (made / "codes" / name).read_bytes()


def test_ten_crop_order(made: Path) -> None:
    folder = ImageFolder(made / "images", 32)
    pixels = extract_codes.Crops(folder, True, [1.1, 1.25])[5]["pixels"]
    assert pixels.shape == (20, 32, 32, 3)
    whole = np.asarray(center_crop(read_image(folder.paths[5]), 40))
    top_left, top_right, bottom_left, bottom_right, centre = pixels[10:15]
    assert np.array_equal(top_left, whole[:32, :32]) and np.array_equal(top_right, whole[:32, 8:])
    assert np.array_equal(bottom_left, whole[8:, :32]) and np.array_equal(bottom_right, whole[8:, 8:])
    assert np.array_equal(centre, whole[4:36, 4:36])
    assert np.array_equal(pixels[15:], pixels[10:15, :, ::-1])


def test_extraction_goes_on_where_it_stopped(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--data-path", made / "images", "--vq-ckpt", made / "vq", "--code-path", tmp_path / "codes", "chunk=4"]
    settings = parse(ExtractConfig, EXTRACT_FLAGS, *words, "--device", "cpu")
    model = tokenizers.load(made / "vq")
    folder = ImageFolder(made / "images", 32)
    crops = extract_codes.Crops(folder, False, [1.1])
    writer = ChunkedWriter(tmp_path / "codes", extract_codes._meta(settings, model, folder, crops), 4)
    writer.prepare()
    writer.write(1, np.zeros((4, 2, 16), dtype=np.int64))  # recognisable: the job must keep it
    extract_codes.run(settings)
    codes, whole = np.load(tmp_path / "codes/codes.npy"), np.load(made / "codes/codes.npy")
    assert not codes[4:8].any()
    assert np.array_equal(codes[:4], whole[:4]) and np.array_equal(codes[8:], whole[8:])
    extract_codes.run(settings)
    assert "nothing to do" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ training


def test_first_loss_is_that_of_a_uniform_guess_and_it_falls(made: Path) -> None:
    lines = [json.loads(line) for line in (made / "gpt/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[0] == pytest.approx(np.log(64), rel=1e-5) and losses[-1] < losses[0]
    assert lines[-1]["val/loss"] < np.log(64) and "val/loss_ema" not in lines[-1]
    model = autoregressive.load(made / "gpt")
    assert (model.num_tokens, model.codebook_size, model.num_classes) == (16, 64, 3)


def test_a_generator_learns_what_belongs_to_each_class(made: Path, tmp_path: Path) -> None:
    sequences = np.random.default_rng(5).integers(0, 64, (3, 16))
    writer = ChunkedWriter(tmp_path / "codes", {
        "num_images": 30, "num_augmentations": 1, "num_tokens": 16, "codebook_size": 64, "classes": ["a", "b", "c"],
        "tokenizer": None,
    })
    writer.prepare()
    writer.write(0, sequences[np.arange(30) % 3][:, None])
    writer.finish(list(np.arange(30) % 3))
    train.run(train_config(
        made, tmp_path / "out", "--code-path", tmp_path / "codes", "--iterations", 80, "--global-batch-size", 12,
        "--lr", 3e-3, "--warmup", 5, "run.validate_every=0", "--ckpt-every", 80,
    ))
    model = autoregressive.load(tmp_path / "out")
    drawn = generate(model, torch.tensor([2, 0, 1, 1]), guidance=Guidance(2.0), seed=1)
    assert np.array_equal(drawn.numpy(), sequences[[2, 0, 1, 1]])


@pytest.mark.parametrize("muon_lr", ["null", "0.02"])
def test_resume_repeats_the_uninterrupted_run(made: Path, tmp_path: Path, muon_lr: str) -> None:
    noisy = ["input_noise=0.2", "model.residual_dropout=0.3", "ema_decay=0.9", f"optim.muon_lr={muon_lr}"]
    train.run(train_config(made, tmp_path / "whole", *noisy))
    train.run(train_config(made, tmp_path / "parts", *noisy, "--early-stop-iter", 2))
    train.run(train_config(made, tmp_path / "parts", *noisy))
    for name in ("model", "ema"):
        whole, parts = (
            checkpoint.read_weights(checkpoint.newest(tmp_path / run), name) for run in ("whole", "parts")
        )
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert autoregressive.load(tmp_path / "parts", weights="ema").num_tokens == 16


def regressed(made: Path, out: Path, *words: object) -> TrainConfig:
    return train_config(made, out, "--vq-ckpt", made / "vq", "regression.weight=0.5", *words)


def trainee_of(settings: TrainConfig) -> train.GeneratorTrainee:
    world = dist.World(0, 1, torch.device("cpu"))
    source = train.Source(settings, world)
    settings = dataclasses.replace(settings, model=source.complete(settings.model))
    return train.GeneratorTrainee(settings, world, source)


def test_regression_learns_the_vectors_of_the_codes_and_resumes(made: Path, tmp_path: Path) -> None:
    train.run(regressed(made, tmp_path / "whole", "input_noise=0.2"))
    for stop in ("2", "None"):
        train.run(regressed(made, tmp_path / "parts", "input_noise=0.2", "--early-stop-iter", stop))
    for name in ("model", "regression"):
        whole, parts = (checkpoint.read_weights(checkpoint.newest(tmp_path / run), name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert autoregressive.load(tmp_path / "whole").num_tokens == 16  # the heads are no part of the generator
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss_regression_next"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0] < 0.5 * 2


def test_regression_sees_the_code_fed_last_early_and_the_next_one_late(made: Path, tmp_path: Path) -> None:
    """Heads that were told the answer: the loss is 0 where the targets are aligned as documented, and only there."""
    heads = trainee_of(regressed(made, tmp_path / "x", "model.num_tokens=8")).regressed.eval()
    codebook = tokenizers.load(made / "vq").quantizer.codebook()
    torch.testing.assert_close(heads.codebook, codebook)
    codes, labels = torch.randint(64, (2, 8)), torch.tensor([0, 1])
    vectors = torch.nn.functional.embedding(codes, codebook)

    def states(*_: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
        fed = torch.cat([torch.zeros(2, 1, 8), vectors[:, :-1]], dim=1)
        return torch.zeros(2, 8, 64), [fed, vectors]

    heads.model.forward_with_states = states
    heads.heads = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ("current", "next")})
    _, losses = heads(codes, labels, None, codes)
    assert losses["regression_current"].item() == pytest.approx(0, abs=1e-6)
    assert losses["regression_next"].item() == pytest.approx(0, abs=1e-6)
    _, losses = heads(codes, labels, None, codes.flip(1))
    assert losses["regression_current"] > 0.1 and losses["regression_next"] > 0.1


def test_regression_changes_the_generator_only_through_its_losses(made: Path, tmp_path: Path) -> None:
    """With weight 0 the generator learns as without; with more it gets another gradient, also in its first block."""
    gradients = {}
    for name, words in (("off", ()), ("zero", ("regression.weight=0",)), ("on", ("regression.weight=1",))):
        given = ("--vq-ckpt", made / "vq", *words) if words else ()
        trainee = trainee_of(train_config(made, tmp_path / name, *given))
        torch.nn.init.normal_(trainee.model.output.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        batch = {"codes": torch.arange(32).view(2, 16), "label": torch.tensor([0, 1])}
        trainee.step(batch, 0)
        gradients[name] = {key: p.grad for key, p in trainee.model.named_parameters()}
    for key, value in gradients["off"].items():
        assert torch.allclose(gradients["zero"][key], value, atol=1e-7), key
    first = next(key for key in gradients["on"] if key.startswith("layers.0."))
    assert not torch.allclose(gradients["on"][first], gradients["off"][first])


def test_regression_refuses_what_it_cannot_do(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --vq-ckpt"):
        trainee_of(train_config(made, tmp_path / "x", "regression.weight=1"))
    with pytest.raises(UserError, match="has 1 to 2"):
        trainee_of(regressed(made, tmp_path / "x", "regression.current_layer=3"))


def test_a_run_cools_down_from_any_checkpoint_of_a_longer_one(made: Path, tmp_path: Path) -> None:
    """As if it had been planned so from the start, since both have held their rate so far."""
    cooling = ["--lr-scheduler", "wsd", "--fract-decay", 0.5]
    train.run(train_config(made, tmp_path / "long", *cooling, "--iterations", 12, "--early-stop-iter", 5))
    train.run(train_config(made, tmp_path / "planned", *cooling, "--iterations", 8))
    middle = tmp_path / "long" / "checkpoints" / "0000004"
    train.run(train_config(made, tmp_path / "cooled", *cooling, "--iterations", 8, f"run.resume_from={middle}"))
    weights = [checkpoint.read_weights(checkpoint.newest(tmp_path / run), "model") for run in ("planned", "cooled")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    lines = [json.loads(line) for line in (tmp_path / "cooled" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["train/lr"] for line in lines if "train/lr" in line}
    assert [*rates] == [5, 6, 7, 8] and rates[5] == pytest.approx(1e-3) and rates[8] < rates[7] < rates[6] < 1e-3


def test_images_tokenized_on_the_fly_teach_the_same_as_their_codes(made: Path, tmp_path: Path) -> None:
    common = ["--data-path", made / "images", "--vq-ckpt", made / "vq", "data.crop=center", "data.flip=false"]
    settings = train_config(made, tmp_path / "out", "data.codes=null", *common)
    source = train.Source(settings, dist.World(0, 1, torch.device("cpu")))
    item = source.dataset[4]
    codes = source.codes({"pixels": torch.from_numpy(item["pixels"])[None]})
    assert np.array_equal(codes[0].numpy(), np.load(made / "codes/codes.npy")[4, 0])
    train.run(settings)
    assert autoregressive.load(tmp_path / "out").num_classes == 3


def test_a_generator_of_fewer_codes(made: Path, tmp_path: Path) -> None:
    train.run(train_config(made, tmp_path / "out", "model.num_tokens=6"))
    packed = sample.run(sample_config(made, tmp_path / "six", "--gpt-ckpt", tmp_path / "out"))
    assert read_npz(packed).shape == (7, 32, 32, 3)


@pytest.mark.parametrize("kind", ["gpt", "rar"])
def test_what_a_step_draws_does_not_depend_on_the_number_of_ranks(kind: str) -> None:
    """Labels to drop, noise and orders. Every rank draws its own rows alone."""
    words = ["run.out=x", "run.steps=10", "model.size=tiny", "input_noise=0.5", "model.class_dropout=0.5"]
    words += [f"model.name={kind}", "model.codebook_size=40", "model.num_tokens=16", "model.num_classes=3"]
    build, _ = train.without_data(config.parse(TrainConfig, words))
    codes = torch.full((4, 16), 7)

    def draw(rank: int, ranks: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
        trainee = build(dist.World(0, 1, torch.device("cpu")))
        trainee.world = dist.World(rank, ranks, torch.device(device))
        return trainee._draw(codes[: 4 // ranks].to(device), step=1)

    whole, halves = draw(0, 1), [draw(0, 2), draw(1, 2)]
    assert len(whole) == (3 if kind == "rar" else 2)
    assert all(torch.equal(torch.cat(parts), one) for one, *parts in zip(whole, *halves, strict=True))
    assert 0 < whole[0].sum() < 4 and 0.2 < (whole[1] != 7).float().mean() < 0.8
    assert [each.device.type for each in draw(1, 2, "meta")] == ["meta"] * len(whole)


def test_orders_are_random_at_first_and_raster_at_last() -> None:
    """RAR: all orders are random in the first half of the steps, all are raster in the last quarter."""
    words = ["run.out=x", "run.steps=100", "model.name=rar", "model.size=tiny"]
    words += ["model.codebook_size=40", "model.num_tokens=16", "model.num_classes=3"]
    build, _ = train.without_data(config.parse(TrainConfig, words))
    trainee, raster = build(dist.World(0, 1, torch.device("cpu"))), torch.arange(16)

    def share(step: int) -> float:
        orders = trainee._draw(torch.zeros(64, 16, dtype=torch.int64), step)[2]
        assert torch.equal(orders.sort(dim=1).values, raster.expand(64, 16))
        return (orders == raster).all(dim=1).float().mean().item()

    assert [share(step) for step in (0, 49, 75, 99)] == [0, 0, 1, 1] and 0.25 < share(62) < 0.75


def _join(rank: int, ranks: int, port: int) -> None:
    """What torchrun tells a process."""
    if ranks > 1:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _gradients(rank: int, ranks: int, root: Path, out: Path, port: int) -> None:
    """First-step loss and gradients of one rank; rank 0 saves them."""
    _join(rank, ranks, port)
    world = dist.init("cpu")
    settings = train_config(root, out, "model.class_dropout=0.5", "input_noise=0.3", "--max-grad-norm", 0)
    source = train.Source(settings, world)
    settings = dataclasses.replace(settings, model=source.complete(settings.model))
    trainee = train.GeneratorTrainee(settings, world, source)
    torch.nn.init.normal_(trainee.model.output.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = next(iter(train.stream(source.dataset, 4, rank, ranks, 0, 0, 1)))
    loss = dist.mean(trainee.step(batch, 0))["train/loss"]
    if rank == 0:
        gradients = {name: value.grad for name, value in trainee.model.named_parameters() if value.grad is not None}
        torch.save({"loss": loss, "gradients": gradients}, out)
    dist.close()


def test_two_ranks_compute_what_one_does(made: Path, tmp_path: Path, free_port: int) -> None:
    _gradients(0, 1, made, tmp_path / "one", free_port)
    torch.multiprocessing.spawn(_gradients, (2, made, tmp_path / "two", free_port), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, expected in one["gradients"].items():
        assert (two["gradients"][name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name


# ------------------------------------------------------------------------------------------------------ sampling


def test_samples_on_disk_in_the_npz_and_after_an_interruption(made: Path, tmp_path: Path) -> None:
    packed = sample.run(sample_config(made, tmp_path / "all", "--per-proc-batch-size", 3))
    pixels = read_npz(packed)
    assert pixels.shape == (7, 32, 32, 3) and len(np.unique(pixels.reshape(7, -1), axis=0)) > 1
    assert np.load(tmp_path / "all/labels.npy").tolist() == [0, 1, 2, 0, 1, 2, 0]
    (tmp_path / "all/000004.png").unlink()
    again = read_npz(sample.run(sample_config(made, tmp_path / "all", "--per-proc-batch-size", 7)))
    assert np.array_equal(again, pixels)
    with pytest.raises(UserError, match="guidance"):
        sample.run(sample_config(made, tmp_path / "all", "--cfg-scale", 3.0))
    few = read_npz(sample.run(sample_config(made, tmp_path / "few", "--num-token", 4)))
    assert not np.array_equal(few, pixels)


def test_samples_without_pngs_extend_the_npz(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_npz(sample.run(sample_config(made, tmp_path / "png")))
    packed = sample.run(sample_config(made, tmp_path / "few", "png=false", "num_images=4"))
    assert np.array_equal(read_npz(packed), expected[:4]) and not list((tmp_path / "few").glob("*.png"))
    drawn: list[int] = []
    codes = sample.ImageSampler.codes
    count = lambda self, labels, *rest: drawn.append(len(labels)) or codes(self, labels, *rest)  # noqa: E731
    monkeypatch.setattr(sample.ImageSampler, "codes", count)
    for _ in range(2):
        packed = sample.run(sample_config(made, tmp_path / "few", "png=false"))
        assert np.array_equal(read_npz(packed), expected) and sum(drawn) == 3
    assert not list(tmp_path.glob("*.part-*"))


def test_packing_reads_no_png_that_was_just_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = sample.read_image
    monkeypatch.setattr(sample, "read_image", lambda path: read.append(path) or original(path))
    sample.run(sample_config(made, tmp_path / "all"))
    assert not read
    (tmp_path / "all/000004.png").unlink()
    sample.run(sample_config(made, tmp_path / "all"))
    assert len(read) == 6
    sample.run(sample_config(made, tmp_path / "all"))  # complete: nothing is packed again
    assert len(read) == 6


def test_the_weights_that_are_sampled_are_printed(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample.run(sample_config(made, tmp_path / "all"))
    told = capsys.readouterr().out
    assert "generator: model weights of" in told and "tokenizer: " in told


def test_two_ranks_sample_the_same_images(made: Path, tmp_path: Path, free_port: int) -> None:
    expected = read_npz(sample.run(sample_config(made, tmp_path / "one")))
    torch.multiprocessing.spawn(_sample, (2, made, tmp_path / "two", free_port), nprocs=2)
    assert np.array_equal(read_npz(tmp_path / "two.npz"), expected)


def _sample(rank: int, ranks: int, root: Path, out: Path, port: int) -> None:
    _join(rank, ranks, port)
    sample.run(sample_config(root, out, "--per-proc-batch-size", 2))


def test_sampling_does_not_wait_for_torchs_compiler(made: Path, tmp_path: Path) -> None:
    """torch imports it, over a second, for a decorator or for normal numbers on the meta device."""
    job = "import sys, autoregressive.sample as job; job.main(); print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    words = ["--gpt-ckpt", made / "gpt", "--vq-ckpt", made / "vq", "--sample-dir", tmp_path, "--num-fid-samples", 7]
    done = subprocess.run([sys.executable, "-c", job, *map(str, words)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.slow
def test_compiled_models_sample_the_same_images(made: Path, tmp_path: Path) -> None:
    """With the real compiler, which takes a minute: python -m pytest -m slow tests/unit/test_gpt_jobs.py"""
    plain = read_npz(sample.run(sample_config(made, tmp_path / "plain")))
    compiled = read_npz(sample.run(sample_config(made, tmp_path / "compiled", "--compile")))
    assert abs(compiled.astype(int) - plain).max() <= 1
    with pytest.raises(UserError, match="compile"):
        sample.run(sample_config(made, tmp_path / "plain", "--compile"))


def test_chosen_classes_get_a_folder_each(made: Path, tmp_path: Path) -> None:
    sample.run(sample_config(made, tmp_path / "out", "--class-idx", "2,0", "--qual-num", 5, "--precision", "fp16"))
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == [
        "class_0_apple/apple_000000.png", "class_0_apple/apple_000001.png",
        "class_2_cat/cat_000000.png", "class_2_cat/cat_000001.png", "class_2_cat/cat_000002.png",
    ]


@pytest.mark.parametrize("mode", ["balanced", "uniform"])
def test_labels_of_a_short_run_begin_those_of_a_long_one(made: Path, tmp_path: Path, mode: str) -> None:
    short, long = (
        sample.choose_labels(sample_config(made, tmp_path, f"labels={mode}", f"num_images={count}"), 3)
        for count in (50, 3000)
    )
    assert np.array_equal(short, long[:50])
    counts = np.bincount(long)
    assert counts.tolist() == [1000] * 3 if mode == "balanced" else 0 < np.ptp(counts) < 200


# -------------------------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_one_sentence(made: Path, tmp_path: Path) -> None:
    for words, message in (
        (["model.codebook_size=128"], "codebook_size is 128, the data have 64"),
        (["model.num_tokens=17"], "asked for 17"),
        (["--data-path", made / "images"], "either a code store"),
        (["data.val_codes=null"], "val_codes"),
        (["--code-path", tmp_path / "nowhere"], "not a code store"),
        (["--gpt-model", "GPT-BB"], "GPT-BB"),
        (["--global-batch-size", "0.5"], "batch_size"),
        (["run.parallel=fsdp", "optim.muon_lr=0.02"], "whole matrices"),
    ):
        with pytest.raises(UserError, match=message):
            train.run(train_config(made, tmp_path / "out", *words))
    for words, message in (
        (["--class-idx", "3"], "classes 0 to 2"), (["--num-token", 17], "at most 16"), (["--image-size", 256], "32"),
        (["--gpt-model", "GPT-B"], "tiny"), (["--cfg-schedule", "stop"], "step"),
        (["--gpt-ckpt", tmp_path], "no checkpoint"), (["gpt_weights=ema"], "no weights 'ema'"),
        (["--precision", "int4"], "bf16"), (["labels=odd"], "uniform"), (["--cfg-scale", 0.5], "scale is 0.5"),
    ):
        with pytest.raises(UserError, match=message):
            sample.run(sample_config(made, tmp_path / "samples", *words))
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "samples").exists()
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("schema", "aliases", "words", "message"), [
    (TrainConfig, TRAIN_FLAGS, ["model.widht=3"], "width"),
    (TrainConfig, TRAIN_FLAGS, ["optim.learning_rate=1"], "optim.learning_rate"),
    (TrainConfig, TRAIN_FLAGS, ["--gpt-modle", "B"], "gpt-model"),
    (SampleConfig, SAMPLE_FLAGS, ["guidance.scael=2"], "scale"),
    (SampleConfig, SAMPLE_FLAGS, ["--quant-way", "fsq"], "fsq"),
    (ExtractConfig, EXTRACT_FLAGS, ["--code-pth", "x"], "code-path"),
    (ExtractConfig, EXTRACT_FLAGS, [], "code_path"),
])
def test_misspelt_options_name_the_nearest(schema: type, aliases: dict, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(schema, aliases, *words)
