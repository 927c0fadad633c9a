"""Tokenizer training as a job: one step of every part, ranks, resume, freezing, and mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

import tokenizer
from common import checkpoint, config, dist
from common.data import ImageFolder, stream
from common.dist import World
from common.errors import UserError
from common.numerics import step_generator
from tokenizer.config import TrainConfig
from tokenizer.frozen_codes import codes_fingerprint
from tokenizer.model import Pass
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.regularizers.base import Plan
from tokenizer.train import TokenizerTrainee

ROOT = Path(__file__).parents[2]
CPU = World(0, 1, torch.device("cpu"))
SMALL = """
model:
  image_size: 32
  z_channels: 32
  layout: {num_tokens: 16, redundant: 8}
  encoder: {name: tokenizer.tiny:Tiny1dEncoder, cnn: {channels: 32, multipliers: [1, 1], patch: 4}, transformer: {width: 32, layers: 2, heads: 2}}
  decoder:
    name: tokenizer.tiny:Tiny1dDecoder
    cnn: {channels: 32, multipliers: [1, 1], patch: 4}
    transformer: {width: 32, layers: 2, heads: 2}
    semantic_head: {depth: 1, width: 112}
  quantizer: {name: vq, codebook_size: 64, entropy_weight: 0.1, refresh_every: 2}
data: {batch_size: 4}
run: {steps: 6, checkpoint_every: 2, keep_last: 9, milestone_every: 0, precision: none, device: cpu}
optim: {lr: 1.0e-3, warmup: 2}
losses: {perceptual: {name: efficientnet_lite0, strides: [4, 8]}}
adversary: {start: 0, discriminator: {name: patchgan, channels: 16, layers: 1}}
regularizers:
  nested_dropout: {min_tokens: 2}
  semantic: {teacher: {name: efficientnet_lite0}, schedule: linear}
  shortcut: {until: 3}
ema_decay: 0.9
log: {every: 1}
"""  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizer")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "images" / name).mkdir(parents=True)
        for index in range(6):
            colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(colours).resize((40, 36)).save(root / "images" / name / f"{index}.png")
    (root / "small.yaml").write_text(SMALL)
    return root


def settings(folder: Path, out: Path, *words: str) -> TrainConfig:
    given = ["--config", f"{folder}/small.yaml", "--data-path", f"{folder}/images", "--out", str(out), *words]
    return config.parse(TrainConfig, given, aliases=TRAIN_FLAGS)


def job(folder: Path, out: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tokenizer.train", "--config", f"{folder}/small.yaml", "--out", str(out), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


# --------------------------------------------------------------------------------------------------------- ranks


GAMES = {
    "hinge": ("adversary.adaptive=true", "adversary.lecam={}"),
    "r3gan": (
        "adversary.loss=relativistic", "adversary.penalty=2", "model.quantizer.name=lfq",
        "model.quantizer.codebook_size=64",
    ),
    "robustok": (
        "model.encoder={name: dino_vit, width: 112, layers: 2, heads: 2, patch: 8}", "model.z_channels=112",
        "model.decoder={name: dino_vit, width: 112, layers: 2, heads: 2, patch: 8}", "model.layout.redundant=0",
        "regularizers={nested_dropout: null, semantic: null, shortcut: null}",
        "regularizers.perturbation={beta: 0.9, delta: 9}", "regularizers.contrastive.teacher.name=efficientnet_lite0",
    ),
}  # fmt: skip


def _first_steps(rank: int, ranks: int, folder: Path, out: Path, port: int) -> None:
    """The first step of every game: what was logged, every gradient, and the state that checkpoints keep."""
    if ranks > 1:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = dist.init("cpu")
    found = {}
    for game, words in GAMES.items():
        chosen = settings(folder, out, "optim.max_grad_norm=0", *words)
        trainee = TokenizerTrainee(chosen, world)
        data = ImageFolder(chosen.data.root, 32, "random", True, 0)
        batch = next(iter(stream(data, 4, rank, ranks, 0, 0, 1)))
        logged = trainee.step(batch, 0)
        modules = {"tokenizer": trainee.tokenizer, "discriminator": trainee.adversary.module}
        found[game] = {
            "own": {key: value.item() for key, value in logged.items()},
            "logged": dist.mean(logged),
            "lecam": {name: value.item() for name, value in (trainee.adversary.state()["lecam"] or {}).items()},
            "window": trainee.tokenizer.quantizer.codebook_used,
            "buffers": dict(trainee.adversary.module.named_buffers()),
            "gradients": {
                f"{name}.{key}": value.grad
                for name, module in modules.items()
                for key, value in module.named_parameters()
                if value.requires_grad
            },
        }
    torch.save(found, f"{out}_{rank}")
    dist.close()


def test_two_ranks_compute_what_one_does(folder: Path, tmp_path: Path, free_port: int) -> None:
    """Losses and gradients as of the whole batch; what the discriminator's statistics, LeCam, the adaptive weight and
    the codebook's record hold is the same on every rank."""
    _first_steps(0, 1, folder, tmp_path / "one", free_port)
    torch.multiprocessing.spawn(_first_steps, (2, folder, tmp_path / "two", free_port), nprocs=2)
    ones, twos, others = (
        torch.load(tmp_path / name, weights_only=True) for name in ("one_0", "two_0", "two_1")
    )
    for game, one in ones.items():
        two, other = twos[game], others[game]
        for key in one["logged"]:
            if key != "train/grad_norm":
                assert two["logged"][key] == pytest.approx(one["logged"][key], rel=1e-5, abs=1e-6), (game, key)
        assert one["gradients"].keys() == two["gradients"].keys()
        whole, difference = (
            torch.stack([value.double().norm() for value in values]).norm()
            for values in (
                one["gradients"].values(),
                [two["gradients"][key] - value for key, value in one["gradients"].items()],
            )
        )
        assert difference <= 1e-5 * whole, game
        for key, value in one["buffers"].items():
            assert torch.equal(two["buffers"][key], other["buffers"][key]), key
            torch.testing.assert_close(two["buffers"][key], value)
        assert two["lecam"] == other["lecam"]
        assert torch.equal(two["window"], other["window"])
        assert torch.equal(two["window"].sort().values, one["window"].sort().values)
        assert two["own"]["train/codebook_usage"] == other["own"]["train/codebook_usage"] > 0
    assert ones["hinge"]["lecam"] == pytest.approx(twos["hinge"]["lecam"], rel=1e-5, abs=1e-6)
    assert twos["hinge"]["own"]["train/weight@adversarial"] == others["hinge"]["own"]["train/weight@adversarial"]
    assert ones["robustok"]["logged"]["train/perturbed@images"] > 0
    assert ones["r3gan"]["logged"]["train/loss_gradient_penalty"] > 0


@pytest.mark.parametrize("per_sample", [False, True])
def test_ranks_agree_on_what_is_kept(folder: Path, per_sample: bool) -> None:
    chosen = settings(folder, Path("x"), f"regularizers.nested_dropout.per_sample={per_sample}")
    dropout = TokenizerTrainee(chosen, CPU).regularizers[0]
    layout = chosen.model.layout
    drawn = []
    for rank, count in ((0, 8), (0, 4), (1, 4)):
        plan = Plan(3, 0, count, rank, layout)
        dropout.plan(plan)
        drawn.append(plan.lengths[0])
    if per_sample:
        assert torch.equal(drawn[0], torch.cat(drawn[1:])) and drawn[0].unique().numel() > 1
    else:
        assert drawn[0] == drawn[1] == drawn[2]


def test_kept_lengths_are_uniform_over_the_extended_sequence(folder: Path) -> None:
    chosen = settings(folder, Path("x"))
    dropout = TokenizerTrainee(chosen, CPU).regularizers[0]
    lengths = torch.cat([dropout.draw(1, Plan(step, 0, 1, 0, chosen.model.layout)) for step in range(10000)])
    counts = torch.bincount(lengths, minlength=25)[2:]
    expected = 10000 / 23
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert lengths.min() == 2 and lengths.max() == 24 and chi_square < 48.3  # 99.9% quantile with 22 degrees of freedom


def test_multiples_are_drawn_equally_often(folder: Path) -> None:
    chosen = settings(folder, Path("x"), "regularizers.nested_dropout.multiple_of=5")
    dropout = TokenizerTrainee(chosen, CPU).regularizers[0]
    lengths, counts = dropout.draw(5000, Plan(0, 0, 1, 0, chosen.model.layout)).unique(return_counts=True)
    assert lengths.tolist() == [5, 10, 15, 20, 24] and counts.min() > 900


def test_full_lengths_do_not_depend_on_the_number_of_ranks(folder: Path) -> None:
    words = ("per_sample=true", "full_probability=0.5")
    chosen = settings(folder, Path("x"), *(f"regularizers.nested_dropout.{word}" for word in words))
    dropout = TokenizerTrainee(chosen, CPU).regularizers[0]
    whole, *halves = (Plan(3, 0, count, rank, chosen.model.layout) for rank, count in ((0, 16), (0, 8), (1, 8)))
    for plan in (whole, *halves):
        dropout.plan(plan)
    assert torch.equal(whole.lengths[0], torch.cat([plan.lengths[0] for plan in halves]))
    assert 0 < (whole.lengths[0] == 16).sum() < 16


def drawn(trainee: TokenizerTrainee, step: int, rank: int, count: int) -> list[torch.Tensor]:
    """What the perturbation draws for one rank's `count` images."""
    plan = Plan(step, 0, count, rank, trainee.config.model.layout)
    how = trainee.regularizers[-1].draw(plan)
    return [how.chosen, how.uniforms, how.ranks]


def test_perturbation_belongs_to_the_step_and_the_place_in_the_global_batch(folder: Path) -> None:
    words = ("regularizers.perturbation.beta=0.5", "regularizers.perturbation.delta=9")
    trainee = TokenizerTrainee(settings(folder, Path("x"), *words), CPU)
    whole = drawn(trainee, 3, 0, 16)
    halves = zip(drawn(trainee, 3, 0, 8), drawn(trainee, 3, 1, 8), strict=True)
    for one, two in zip(whole, halves, strict=True):
        assert torch.equal(one, torch.cat(two)) and one.unique().numel() > 1
    assert whole[1].shape == (16, 24) and whole[2].max() == 8
    assert not torch.equal(whole[1], drawn(trainee, 4, 0, 16)[1])


def test_the_quantizer_s_losses_do_not_see_the_perturbation(folder: Path) -> None:
    off = "regularizers.nested_dropout=null"
    clean, _ = losses_of(folder, off)
    wrong, trainee = losses_of(folder, off, "regularizers.perturbation.beta=1", "regularizers.perturbation.delta=64")
    assert wrong["recon"] != clean["recon"]
    for name in ("vq", "commit", "entropy"):
        assert torch.equal(wrong[name], clean[name])
    sum(value for name, value in wrong.items() if "@" not in name).backward()
    assert all(p.grad is not None for p in trainee.tokenizer.encoder.parameters())


def test_perturbation_shrinks_over_its_steps(folder: Path) -> None:
    given = ("anneal_start=40", "anneal_end=120", "end_ratio=0.25", "delta=60")
    words = [f"regularizers.perturbation.{word}" for word in given]
    trainee = TokenizerTrainee(settings(folder, Path("x"), *words), CPU)
    assert [trainee.regularizers[-1].now(step) for step in (0, 40, 80, 120, 999)] == [
        (1.0, 60), (1.0, 60), (0.625, 37), (0.25, 15), (0.25, 15),
    ]  # fmt: skip
    for word in ("alpha=1.5", "delta=0", "delta=65", "anneal_end=39", "neighbours=far"):
        with pytest.raises(UserError, match=f"perturbation.{word.partition('=')[0]}"):
            TokenizerTrainee(settings(folder, Path("x"), *words, f"regularizers.perturbation.{word}"), CPU)


def losses_of(
    folder: Path, *words: str, lengths: list[int | None] | None = None
) -> tuple[dict[str, torch.Tensor], TokenizerTrainee]:
    off = ("adversary=null", "regularizers.semantic=null", "regularizers.shortcut=null")
    chosen = settings(folder, Path("x"), *off, *words)
    trainee = TokenizerTrainee(chosen, CPU)
    images = torch.rand(2, 3, 32, 32, generator=step_generator(0, 2)) * 2 - 1
    made = trainee.plan(2, 0)
    made.lengths = lengths or made.lengths
    return trainee.generator_losses(images, made)[0], trainee


def test_cross_length_adds_up_two_single_length_losses(folder: Path) -> None:
    both, _ = losses_of(folder, "regularizers.nested_dropout=null", "regularizers.cross_length={}", lengths=[None, 5])
    whole, _ = losses_of(folder, "regularizers.nested_dropout=null")
    prefix, _ = losses_of(folder, "regularizers.nested_dropout=null", lengths=[5])
    for name in ("recon", "perceptual"):
        assert both[name].item() == pytest.approx(whole[name].item() + prefix[name].item(), rel=1e-5)
    assert both["vq"].item() == pytest.approx(whole["vq"].item())


def test_the_alignment_target_carries_no_gradient(folder: Path) -> None:
    words = ("regularizers.nested_dropout=null", "regularizers.cross_length={}", "regularizers.self_alignment={}")
    losses, trainee = losses_of(folder, *words, lengths=[None, 5])
    assert 0 < losses["self_alignment"].item() < 2
    tokens = torch.randn(1, 8, 1, 16, requires_grad=True)
    views = [trainee.tokenizer.decode_vectors(tokens, k) for k in (None, 5)]
    done = Pass(views, None)
    plan = Plan(0, 0, 1, 0, trainee.config.model.layout, [None, 5])
    trainee.regularizers[0].losses(torch.empty(0), done, plan)["self_alignment"].backward()
    assert tokens.grad[..., :5].abs().max() > 0 and tokens.grad[..., 5:].abs().max() == 0
    with pytest.raises(UserError, match="cross_length"):
        losses_of(folder, "regularizers.self_alignment={}")


# ------------------------------------------------------------------------------------------------------ the job


def test_a_run_resumes_bit_for_bit_and_its_checkpoint_loads(folder: Path, tmp_path: Path) -> None:
    noise = ("regularizers.perturbation.beta=0.5", "regularizers.perturbation.delta=9")
    words = ("--data-path", f"{folder}/images", *noise)
    for name, stops in (("whole", [""]), ("cut", ["run.stop_at=3", ""])):
        for stop in stops:
            done = job(folder, tmp_path / name, *words, *filter(None, [stop]))
            assert done.returncode == 0, done.stderr
    folders = [checkpoint.newest(tmp_path / name) for name in ("whole", "cut")]
    for file in ("model", "ema", "discriminator"):
        one, two = (checkpoint.read_weights(found, file) for found in folders)
        assert all(torch.equal(one[key], two[key]) for key in one), file
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    model = tokenizer.load(tmp_path / "cut")
    images = torch.rand(2, 3, 32, 32, generator=step_generator(0, 0)) * 2 - 1
    assert model.decode(model.encode(images)[:, :5]).shape == (2, 3, 32, 32)


def test_frozen_parts_stay_as_they_are_and_codes_with_them(folder: Path, tmp_path: Path) -> None:
    done = job(folder, tmp_path / "first", "--data-path", f"{folder}/images")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "first"
    words = [f"init={first}", f"adversary.init={first}", "freeze=[encoder,quant_conv,quantizer]"]
    words.append("regularizers.shortcut=null")
    tuned = job(folder, tmp_path / "second", "--data-path", f"{folder}/images", *words)
    assert tuned.returncode == 0, tuned.stderr
    before, after = tokenizer.load(tmp_path / "first"), tokenizer.load(tmp_path / "second")
    images = torch.rand(4, 3, 32, 32, generator=step_generator(0, 1)) * 2 - 1
    codes = before.encode(images)
    assert torch.equal(codes, after.encode(images))
    assert not torch.equal(before.decode(codes), after.decode(codes))
    one, two = (
        checkpoint.read_weights(checkpoint.newest(tmp_path / name), "discriminator") for name in ("first", "second")
    )
    key = next(name for name, value in one.items() if value.dim() == 4)
    assert 0 < (one[key] - two[key]).norm() < 0.5 * one[key].norm()  # it went on from the first run's


def test_codes_that_change_while_the_encoder_is_frozen_stop_the_run(folder: Path) -> None:
    chosen = settings(folder, Path("x"), "freeze=[encoder,quant_conv,quantizer]", "regularizers.shortcut=null")
    trainee = TokenizerTrainee(chosen, World(0, 1, torch.device("cpu")))
    trainee.hold_codes()
    batch = {"pixels": torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)}
    trainee.step(batch, 0)
    state = trainee.state()
    before = trainee.frozen_codes.codes
    weights = {name: dict(tensors) for name, tensors in trainee.weights().items()}
    trainee.load(lambda name: weights[name], state)
    assert torch.equal(trainee.frozen_codes.codes, before)
    trainee.ema.module.quant_conv.bias.data += 1e-7
    with pytest.raises(RuntimeError, match="ema: the frozen weights have changed"):
        trainee.state()
    trainee.frozen_codes.fingerprint = codes_fingerprint(trainee.tokenizer)
    trainee.frozen_codes.codes = (before + 1) % 64
    with pytest.raises(RuntimeError, match="model: 64 of 64 codes changed"):
        trainee.state()


def test_codes_may_change_where_nothing_is_frozen(folder: Path) -> None:
    trainee = TokenizerTrainee(settings(folder, Path("x"), "freeze=[encoder]"), World(0, 1, torch.device("cpu")))
    trainee.hold_codes()
    assert trainee.frozen_codes is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data-path", "nowhere"], "'nowhere' does not exist"),
        (["--dta-path", "x"], "unknown flag '--dta-path' (did you mean 'data-path'?)"),
        (["data.root=x", "optim.lrr=1"], "unknown key 'optim.lrr'"),
        (["data.root={images}", "losses.perceptual.name=lpips"], "vgg16-397923af.pth"),
        (["data.root={images}", "regularizers.semantic.teacher.name=dinov2_vitb14"], "efficientnet_lite0"),
        (["data.root={images}", "init=nowhere"], "no checkpoint at 'nowhere'"),
        (["data.root={images}", "freeze=[encodr]"], "'encodr'"),
        (["data.root={corrupt}"], "bad.png"),
        (["data.root={images}", "data.batch_size=0"], "data.batch_size"),
        (["data.root={images}", "run.device=cuda"], "cuda"),
    ],
)
def test_mistakes_end_in_one_sentence_and_code_two(
    folder: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "bad.png").write_bytes(b"\x89PNG cut short")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    filled = [word.format(images=folder / "images", corrupt=tmp_path / "corrupt") for word in words]
    done = job(folder, tmp_path / "out", *filled)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last and "Traceback" not in done.stderr
