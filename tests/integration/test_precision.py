"""Every way to spread a tokenizer's training under every precision: steps, validation, frozen codes, saves, resumes.

With a discriminator, LeCam, the adaptive weight, the entropy term and a weight average. All cells:
python -m pytest -m slow tests/integration/test_precision.py
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoregressive.models.rar import _Block as RarBlock
from common import checkpoint
from tests.faults import jobs
from tests.faults.inject import Fault
from tokenizer.layers.transformer import QFormerLayer, ViTLayer
from tokenizer.layers.vit import VitBlock

FROZEN = ["freeze=[encoder,quant_conv,quantizer]"]
WORDS = [
    "model.quantizer.refresh_every=0", "adversary.adaptive=true", "run.background_save=true", "run.steps=4",
    "run.validate_every=2", "run.checkpoint_every=2", "log.every=1", "optim.lr=1e-4", "run.milestone_every=0",
]  # fmt: skip
CELLS = [
    (parallel, precision, part)
    for parallel in ("none", "ddp", "fsdp")
    for precision in ("none", "bf16")
    for part in ("all", "decoder")
]
FAST = {("none", "none", "all"), ("none", "bf16", "all"), ("fsdp", "bf16", "all"), ("fsdp", "bf16", "decoder")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.make_data(tmp_path_factory.mktemp("precision"))


def train(data: Path, out: Path, cell: tuple[str, str, str], *words: str, ranks: int | None = None) -> None:
    parallel, precision, part = cell
    given = [*WORDS, f"val_root={data}/images", f"run.parallel={parallel}", f"run.precision={precision}"]
    given += FROZEN if part == "decoder" else []
    ranks = ranks or (1 if parallel == "none" else 2)
    codes = jobs.train("tokenizer", data, out, *given, *words, ranks=ranks)
    assert codes == [0] * ranks, Path(f"{out}.rank0.txt").read_text()[-2000:]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """One process trains without a break, by precision and what is trained."""

    @functools.cache
    def find(precision: str, part: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "out"
        train(data, out, ("none", precision, part))
        return out

    return find


def figures(out: Path) -> dict[tuple[int, str], float]:
    """Losses and validations by step and key."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], key): value for line in lines for key, value in line.items() if "loss" in key or "psnr" in key
    }


@pytest.mark.parametrize("cell", [
    pytest.param(cell, id="-".join(cell), marks=[] if cell in FAST else pytest.mark.slow) for cell in CELLS
])  # fmt: skip
def test_a_cell_trains_validates_saves_and_resumes(
    cell: tuple[str, str, str], data: Path, whole: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """Two steps on its own ranks, then one on another number of ranks, then the rest; the losses are those of one."""
    parallel, precision, part = cell
    out = tmp_path / "out"
    train(data, out, cell, "run.stop_at=2")
    if parallel != "none":
        train(data, out, (parallel if part == "all" else "none", precision, part), "run.stop_at=3", ranks=1)
    train(data, out, cell)
    found, expected = figures(out), figures(whole(precision, part))
    assert found.keys() >= expected.keys() and any("psnr" in key for _, key in found)
    wanted = {"train/loss_adversarial", "train/loss_lecam"} | ({"train/loss_entropy"} if part == "all" else set())
    assert wanted < {key for _, key in found}
    # The gradient of the discriminator's last bias is 0 but for rounding, and Adam's first step moves it by lr * sign.
    close = {"rel": 2e-3, "abs": 5e-4} if precision == "none" else {"rel": 0.1, "abs": 0.03}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, **close), key
    assert checkpoint.newest(out).name == "0000004"


def test_only_the_main_process_hashes_a_resumed_checkpoint(data: Path, tmp_path: Path) -> None:
    """Sharded or not, every file once."""
    cell = ("fsdp", "none", "all")
    train(data, tmp_path / "out", cell, "run.stop_at=2")
    files = json.loads((checkpoint.newest(tmp_path / "out") / "manifest.json").read_text())["files"]
    fault = Fault(1, 0, "hash", "raise")
    again = [*WORDS, f"val_root={data}/images", "run.parallel=fsdp", "run.precision=none"]
    assert jobs.train("tokenizer", data, tmp_path / "out", *again, "run.stop_at=2", ranks=2, fault=fault) == [0, 0]
    assert any(name.startswith("model/") for name in files)


@pytest.mark.parametrize("unit, inputs", [
    (VitBlock(32, 2), 1), (ViTLayer(32, 2), 1), (QFormerLayer(32, 2), 4), (RarBlock(32, 2, 64, 0.0, 0.0), 2),
])  # fmt: skip
def test_units_with_bf16_weights_take_a_float32_stream(unit: nn.Module, inputs: int) -> None:
    """FSDP gathers them so. The stream stays in float32, and the output is that of float32 weights but for rounding."""
    streams = [torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(n)) for n in range(inputs)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = unit(*streams)
        found = unit.bfloat16()(*streams)
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
