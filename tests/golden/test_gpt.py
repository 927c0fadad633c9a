"""The GPT against the formula-weight numbers of the specification; everything else is in the golden runner."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance, guide
from autoregressive.models.gpt import GPT

SHARED = Path(__file__).parents[2].parent / "shared"
NUMBERS = SHARED / "spec/autoregressive_golden.json"
pytestmark = pytest.mark.skipif(not NUMBERS.is_file(), reason=f"no numbers at {NUMBERS}")
NO_DROPOUT = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0, "class_dropout": 0.0}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


FORMULA_OPTIONS = {
    "1d": {}, "2d": {"positions": "rope2d"}, "1d_qknorm": {"qk_norm": True},
    "1d_adaLN": {"adaln": "full"}, "1d_simple_adaLN": {"adaln": "simple"},
}


def build_formula(name: str) -> GPT:
    model = GPT(GPT.Config(
        width=32, layers=2, heads=4, multiple_of=16, codebook_size=50, num_tokens=16, num_classes=10,
        **NO_DROPOUT, **FORMULA_OPTIONS[name],
    ))
    with torch.no_grad():
        for rank, (key, value) in enumerate(sorted(model.named_parameters()), start=1):
            place = torch.arange(value.numel(), dtype=torch.float64)
            filled = (0.35 if value.ndim >= 2 else 0.1) * torch.sin(0.37 * place + 1.3 * rank)
            if value.ndim == 1 and key.endswith("weight"):
                filled = filled + 1.0
            value.copy_(filled.view_as(value).float())
    return model.eval()


@pytest.mark.parametrize("name", FORMULA_OPTIONS)
def test_formula_weights(name: str) -> None:
    expected = json.loads(NUMBERS.read_text())[name]
    model = build_formula(name)
    assert {key: list(value.shape) for key, value in model.named_parameters()} == expected["shapes"]
    assert sorted(dict(model.named_parameters())) == expected["names"]
    labels = torch.tensor([3, 7])
    fed = torch.tensor([[(5 * i + 11 * b) % 50 for i in range(15)] + [0] for b in range(2)])
    targets = torch.tensor([[(7 * i + 3 * b + 1) % 50 for i in range(16)] for b in range(2)])
    with torch.inference_mode():
        logits = model(fed, labels)
        inner = model.features(fed, labels, layer=1)
    assert F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() == pytest.approx(expected["loss"], rel=1e-6)
    assert logits.double().sum().item() == pytest.approx(expected["logits_sum"], abs=1e-3)
    assert logits.double().abs().sum().item() == pytest.approx(expected["logits_abs_sum"], rel=1e-5)
    assert logits[0, 0, :6].tolist() == pytest.approx(expected["first"], abs=2e-6)
    assert logits[1, -1, :6].tolist() == pytest.approx(expected["last"], abs=2e-6)
    assert relative(inner.mean(1)[0, :4], torch.tensor(expected["inner1_mean_first4"])) < 1e-5
    cases = {
        "greedy_cfg2_step018": Guidance(2.0, "step", window_start=0.18),
        "greedy_cfg3_const_interval4": Guidance(3.0, interval=4), "greedy_nocfg": Guidance(),
    }
    for case, guidance in cases.items():
        if case in expected:
            codes = generate(model, labels, guidance=guidance, sampling=Sampling(greedy=True))
            assert codes.tolist() == expected[case], case


def test_guided_combination_and_first_loss() -> None:
    logits = torch.randn(4, 7)
    assert relative(guide(logits, 2.0), 2 * logits[:2] - logits[2:]) < 1e-6
    model = GPT(GPT.Config(width=32, layers=1, heads=2, codebook_size=50, num_tokens=4, num_classes=3, **NO_DROPOUT))
    codes = torch.zeros(1, 4, dtype=torch.int64)
    loss = F.cross_entropy(model(codes, torch.tensor([0])).flatten(0, 1), codes.flatten())
    assert loss.item() == pytest.approx(math.log(50))
