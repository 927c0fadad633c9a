"""The GPT generators against numbers computed with the reference implementations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from autoregressive.config import Sampling
from autoregressive.generate import filter_logits, generate
from autoregressive.guidance import Guidance, guide
from autoregressive.models.gpt import GPT

SHARED = Path(__file__).parents[2].parent / "shared"
GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden numbers at {GOLDEN}")
MODELS = ["gpt_1d", "gpt_1d_64tokens", "gpt_1d_options", "llamagen_gpt_2d"]
NO_DROPOUT = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0, "class_dropout": 0.0}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def read(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((GOLDEN / f"tiny/{name}.json").read_text()), load_file(GOLDEN / f"tiny/{name}.io.safetensors")


def build(name: str, about: dict) -> GPT:
    given = about["constructor_args"]
    model = GPT(GPT.Config(
        width=given["dim"], layers=given["n_layer"], heads=given["n_head"], multiple_of=given["multiple_of"],
        codebook_size=given["vocab_size"], num_tokens=given["block_size"], num_classes=given["num_classes"],
        positions="rope2d" if "2d" in name else "learned", qk_norm=given.get("use_qk_norm", False),
        adaln="full" if given.get("use_adaLN") else "none", **NO_DROPOUT,
    ))
    weights = load_file(GOLDEN / f"tiny/{name}.weights.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", ["train", "train_dropped"])
def test_logits_loss_and_gradients(name: str, case: str) -> None:
    about, io = read(name)
    model = build(name, about)
    drop = io["drop_mask"] if case == "train_dropped" else None
    logits = model(io["tokens"], io["labels"], drop)
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = torch.stack([parameters[key].grad.norm() for key in about["grad_norm_parameter_order"]])
    measured = about["fp32_versus_fp64_max_relative_difference"][case]
    gradients = {key: value for key, value in io.items() if key.startswith(f"{case}/grad/")}
    checks = {"logits": (logits, io[f"{case}/logits"]), "loss": (loss, io[f"{case}/loss"])}
    if f"{case}/grad_norms" in io:
        checks["grad_norms"] = (norms, io[f"{case}/grad_norms"])
    for key, expected in gradients.items():
        short = key.removeprefix(f"{case}/")
        checks[short] = (parameters[short.removeprefix("grad/")].grad, expected)
    for key, (got, expected) in checks.items():
        tolerance = max(1e-5, 10 * measured.get(key, 0.0))
        assert relative(got, expected) < tolerance, key
    assert list(parameters) == about["grad_norm_parameter_order"]


@pytest.mark.parametrize("name", MODELS)
def test_label_embedding_and_inner_features(name: str) -> None:
    about, io = read(name)
    model = build(name, about)
    labels = torch.where(io["drop_mask"], model.num_classes, io["labels"])
    assert torch.equal(model.cls_embedding(labels), io["label_embedding_forced_drop"])
    if "inner_feat_layer_2" in io:
        assert relative(model.features(io["tokens"], io["labels"], layer=2), io["inner_feat_layer_2"]) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_cached_decoding(name: str) -> None:
    about, io = read(name)
    model = build(name, about)
    tokens, labels = io["tokens"], io["labels"]
    with torch.inference_mode():
        cache = model.new_cache(len(labels))
        steps = [model.prefill(labels, cache)]
        steps += [model.decode_one(tokens[:, p - 1], p, cache, labels) for p in range(1, tokens.shape[1])]
    assert relative(torch.stack(steps, 1), io["cached/logits"]) < 1e-5


def _guidance(case: dict) -> Guidance:
    return Guidance(
        scale=case["cfg_scale"], schedule=case.get("cfg_schedule", "constant"), interval=case.get("cfg_interval", -1),
        **case.get("cfg_schedule_kwargs", {}),
    )


@pytest.mark.parametrize("name", MODELS)
def test_greedy_generation_under_every_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import autoregressive.generate as module

    seen: list[torch.Tensor] = []
    draw = module._draw
    monkeypatch.setattr(module, "_draw", lambda logits, *rest: (seen.append(logits), draw(logits, *rest))[1])
    about, io = read(name)
    model = build(name, about)
    for case, settings in about["generation_cases"].items():
        seen.clear()
        codes = generate(model, io["gen/labels"], guidance=_guidance(settings), sampling=Sampling(greedy=True))
        assert torch.equal(codes, io[f"gen/{case}/tokens"].long()), case
        assert relative(torch.stack(seen, 1), io[f"gen/{case}/logits"]) < 1e-5, case


@pytest.mark.parametrize("name", ["gpt_1d", "gpt_1d_64tokens", "gpt_1d_options"])
def test_guidance_tables(name: str) -> None:
    about, _ = read(name)
    table = about["guidance_schedule_tables"]
    num_tokens = 1 + table["num_new_tokens_after_the_first"]
    windows = {
        "rectangular": {"window_start": 0.05}, "rectangular_0.25_0.75": {"window_start": 0.25, "window_end": 0.75},
        "step_0.18": {"window_start": 0.18},
    }
    for case, expected in table["values_for_token_2_to_16"].items():
        guidance = Guidance(table["cfg_scale"], case.split("_0.")[0], **windows.get(case, {}))
        scales = guidance.scales(num_tokens)
        assert scales[0] == table["cfg_scale"]
        assert scales[1:] == pytest.approx(expected, abs=1e-12), case


def test_filtering() -> None:
    about, io = read("sampler")
    for case in about["cases"]:
        temperature, top_k, top_p = (float(part[1:]) for part in case.split("_"))
        sampling = Sampling(temperature=temperature, top_k=int(top_k), top_p=top_p)
        filtered = filter_logits(io["logits"][:, -1].clone(), sampling)
        expected = io[f"{case}/probs"]
        assert torch.equal(filtered.softmax(-1) > 0, expected > 0), case
        assert relative(filtered.softmax(-1), expected) < 1e-5, case
        best = filtered.gather(-1, io[f"{case}/argmax"])  # Rows 0 and 1 have ties, so compare values, not places.
        assert torch.equal(best[:, 0], filtered.amax(-1)), case


# ---------------------------------------------------------------------------------------------- formula weights

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
    expected = json.loads((SHARED / "spec/autoregressive_golden.json").read_text())[name]
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


# ---------------------------------------------------------------------------------------------- released sizes

CONTRACTS = [
    path for pattern in ("gpt1d_*", "gpt2d_*", "llamagen_gpt_*")
    for path in sorted(GOLDEN.glob(f"contracts/{pattern}.json"))
    if not path.stem.endswith("_t2i")  # Text-conditional: this generator is class-conditional.
]


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_released_keys_shapes_and_counts(path: Path) -> None:
    contract = json.loads(path.read_text())
    given = contract["constructor_args"]
    with torch.device("meta"):
        model = GPT(GPT.Config(
            size=contract["model_name"], codebook_size=given["vocab_size"],
            num_tokens=given["block_size"], num_classes=given["num_classes"],
            positions="learned" if "gpt1d" in path.stem else "rope2d",
        ))
    state = model.state_dict()
    assert [(key, list(value.shape)) for key, value in state.items()] == [
        (key, shape) for key, (shape, _) in contract["keys"].items()
    ]
    assert sum(value.numel() for value in model.parameters()) == contract["num_parameters"]


def test_guided_combination_and_first_loss() -> None:
    logits = torch.randn(4, 7)
    assert relative(guide(logits, 2.0), 2 * logits[:2] - logits[2:]) < 1e-6
    model = GPT(GPT.Config(width=32, layers=1, heads=2, codebook_size=50, num_tokens=4, num_classes=3, **NO_DROPOUT))
    codes = torch.zeros(1, 4, dtype=torch.int64)
    loss = F.cross_entropy(model(codes, torch.tensor([0])).flatten(0, 1), codes.flatten())
    assert loss.item() == pytest.approx(math.log(50))
