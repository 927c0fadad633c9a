"""The estimate of a step's cost against a formula, and against what a real step allocates."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from autoregressive import train as generator_job
from autoregressive.config import TrainConfig
from autoregressive.models.gpt import SIZES
from autoregressive.train import without_data
from common import config, estimate
from common.dist import World
from common.options import EstimateConfig
from tokenizer import train as tokenizer_job
from tokenizer.config import TrainConfig as TokenizerConfig

ROOT = Path(__file__).parents[2]
WORDS = ["run.out=x", "run.steps=10", "run.device=cpu", "model.size=tiny", "ema_decay=0.9"]
WORDS += ["model.codebook_size=512", "model.num_tokens=64", "model.num_classes=10", "data.batch_size=8"]


def settings(*words: str) -> TrainConfig:
    return config.parse(TrainConfig, [*WORDS, *words])


def measured(chosen: TrainConfig, ranks: int = 1) -> estimate.Estimate:
    return estimate.measure(*without_data(chosen), 8, chosen.run, EstimateConfig(ranks=ranks))


@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_flops_are_those_of_the_formula(precision: str) -> None:
    """Two FLOP a weight of a matrix and token, twice that backward; 4 D for each pair of tokens, and 10 D backward,
    where the kernel computes the scores again."""
    width, layers, _ = SIZES["tiny"]
    found = measured(settings(f"run.precision={precision}"))
    hidden = 256
    matrices = layers * (4 * width * width + 3 * width * hidden) + width * 512
    assert found.flops == 8 * (3 * 2 * 64 * matrices + 14 * layers * 64 * 64 * width)


@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_memory_is_that_of_a_real_step(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a step whose attention runs in bf16, as on a GPU; a CPU computes it in float32."""
    monkeypatch.setattr("common.attention._halves", lambda query: False)
    chosen = settings(f"run.precision={precision}")
    found = measured(chosen)
    build, batch = without_data(chosen)
    trainee = build(World(0, 1, torch.device("cpu")))
    files = trainee.weights()
    ledger = estimate._Ledger(tensor for file in files.values() for tensor in file.values())
    with ledger:
        trainee.step(batch(8), 9)
    assert ledger.now == 0
    assert found.activations_bytes == pytest.approx(ledger.peak, rel=0.1)
    moments = [value for state in trainee.optimizer.state.values() for value in state.values() if value.dim()]
    assert found.optimizer_bytes == sum(value.nbytes for value in moments)
    assert found.weights_bytes == sum(p.nbytes for p in trainee.model.parameters()) == found.average_bytes


def test_sharding_divides_what_it_divides() -> None:
    one, eight = measured(settings("run.parallel=fsdp")), measured(settings("run.parallel=fsdp"), ranks=8)
    for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes", "average_bytes"):
        assert getattr(eight, name) == getattr(one, name) // 8, name
    assert eight.activations_bytes < one.activations_bytes / 4 and one.gathered_bytes == 0 < eight.gathered_bytes
    assert eight.flops == one.flops and eight.parameters == one.parameters
    copies = measured(settings("run.parallel=ddp"), ranks=8)
    assert copies.weights_bytes == one.weights_bytes


def test_recomputing_trades_memory_for_flops() -> None:
    plain, saving = measured(settings()), measured(settings("run.recompute=true"))
    assert saving.activations_bytes < plain.activations_bytes and saving.flops > 1.2 * plain.flops


@pytest.mark.parametrize(
    ("job", "words", "said"),
    [
        (tokenizer_job, ["--config", "configs/vq/VQ_SS256.yaml", "--estimate", "8"], "136,073,227 parameters"),
        (generator_job, ["--config", "configs/gpt/GPT-B.yaml", "--estimate"], "111,085,824 parameters"),
    ],
)
def test_the_jobs_print_it(
    job: object, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Neither images nor codes nor any network's weights are there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["job", *words])
    job.main()
    printed = capsys.readouterr().out
    assert printed.startswith(said) and "TFLOP a step" in printed and "activations" in printed


# ------------------------------------------------------------------------------------------------ shipped configs

HEADER = re.compile(r"^# Machine: (\d+) GPUs of 80 GB; ([\d.]+) GB each \(--estimate \1\)\.$", re.M)
SHIPPED = [ROOT / "configs/main-train.yaml", ROOT / "configs/post-train.yaml"] + [
    path for folder in ("vq", "gpt", "generator") for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if path.name not in ("rar.yaml", "rar_maskgit.yaml")  # other projects' keys, which are read after RAR-B.yaml
]  # fmt: skip
FAST = {"VQ_SS256_retok_finetune", "VQ_SS256", "GPT-B", "GPT-L", "RAR-B"}


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else pytest.mark.slow) for path in SHIPPED
])  # fmt: skip
def test_a_config_fits_its_machine_as_its_header_says(path: Path) -> None:
    """Nine tenths of 80 GB, to leave room for torch itself and for kernels. All of them: -m slow."""
    found = HEADER.search(path.read_text())
    assert found, "the header states no machine"
    job, schema = (generator_job, TrainConfig) if path.parent.name in ("gpt", "generator") else (
        tokenizer_job, TokenizerConfig
    )  # fmt: skip
    chosen = config.parse(schema, ["--config", str(path), *(["data.root=x"] if job is tokenizer_job else [])])
    ranks = EstimateConfig(ranks=int(found[1]))
    needed = estimate.measure(*job.without_data(chosen), chosen.data.batch_size, chosen.run, ranks).memory_bytes / 1e9
    assert float(found[2]) == pytest.approx(needed, rel=0.02) and needed < 72


def test_a_run_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, world = settings(), World(0, 1, torch.device("cpu"))
    asked = (without_data(chosen), 8, chosen.run, world)
    assert estimate.shortage(*asked) is None
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 10**6)
    assert "GB on each GPU, 0.0 GB are free; try run.recompute=true" in estimate.shortage(*asked)
    monkeypatch.setattr(estimate, "free_bytes", lambda device: 10**12)
    assert estimate.shortage(*asked) is None


def test_the_dino_discriminator_is_estimated() -> None:
    words = ["--config", str(ROOT / "configs/vq/VQ_BL256_dino_disc.yaml"), "data.root=x", "data.batch_size=8"]
    small = [f"model.{side}.transformer={{size: tiny}}" for side in ("encoder", "decoder")]
    chosen = config.parse(TokenizerConfig, [*words, *small])
    found = estimate.measure(*tokenizer_job.without_data(chosen), 8, chosen.run, EstimateConfig())
    assert found.discriminator_bytes > 0
