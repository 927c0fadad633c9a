"""GPT generators: learned 1D positions (GigaTok, ReTok) and 2D rotary ones (LlamaGen)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

import autoregressive.generate as decoding
from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from tests.golden import models
from tests.golden.fixture import Fixture, Report, filled


def matches(fixture: Fixture) -> bool:
    if fixture.kind == "fullsize":
        return {"tok_embeddings.weight", "cls_embedding.embedding_table.weight"} <= fixture.keys
    return fixture.kind == "tiny" and "n_layer" in fixture.about.get("constructor_args", {})


def check(fixture: Fixture, report: Report) -> None:
    if fixture.kind == "fullsize":
        _check_released_size(fixture, report)
        return
    about, io = fixture.about, fixture.io
    model = models_of(fixture)
    for case in ("train", "train_dropped"):
        _training(model, fixture, report, case)
    report.recorded = {}
    labels = torch.where(io["drop_mask"], model.num_classes, io["labels"])
    report.equal("label_embedding_forced_drop", model.cls_embedding(labels), io["label_embedding_forced_drop"])
    if "inner_feat_layer_2" in io:
        inner = model.features(io["tokens"], io["labels"], layer=2)
        report.close("inner_feat_layer_2", inner, io["inner_feat_layer_2"])
    with torch.inference_mode():
        cache = model.new_cache(len(io["labels"]))
        steps = [model.prefill(io["labels"], cache)]
        for place in range(1, io["tokens"].shape[1]):
            steps.append(model.decode_one(io["tokens"][:, place - 1], place, cache, io["labels"]))
    report.close("cached/logits", torch.stack(steps, 1), io["cached/logits"])
    for case, settings in about["generation_cases"].items():
        with recorded_logits() as seen:
            codes = generate(model, io["gen/labels"], guidance=_guidance(settings), sampling=Sampling(greedy=True))
        report.equal(f"gen/{case}/tokens", codes, io[f"gen/{case}/tokens"])
        report.close(f"gen/{case}/logits", torch.stack(seen, 1), io[f"gen/{case}/logits"])
    if "guidance_schedule_tables" in about:
        _guidance_tables(about["guidance_schedule_tables"], report)


def models_of(fixture: Fixture) -> GPT:
    positions = "learned" if "positional_embedding" in fixture.weights else "rope2d"
    model = GPT(models.gpt(fixture.about["constructor_args"], positions))
    model.load_state_dict(fixture.weights, strict=True)
    return model.eval()


@contextmanager
def recorded_logits() -> Iterator[list[Tensor]]:
    """The logits (B,K) that each code of `generate` is drawn from, after guidance."""
    seen: list[Tensor] = []
    draw = decoding._draw
    decoding._draw = lambda logits, *rest: (seen.append(logits), draw(logits, *rest))[1]
    try:
        yield seen
    finally:
        decoding._draw = draw


def _training(model: GPT, fixture: Fixture, report: Report, case: str) -> None:
    about, io = fixture.about, fixture.io
    report.recorded = about["fp32_versus_fp64_max_relative_difference"][case]
    model.zero_grad()
    logits = model(io["tokens"], io["labels"], io["drop_mask"] if case == "train_dropped" else None)
    loss = F.cross_entropy(logits.flatten(0, 1), io["tokens"].flatten())
    loss.backward()
    report.close(f"{case}/logits", logits, io[f"{case}/logits"], key="logits")
    report.close(f"{case}/loss", loss, io[f"{case}/loss"], key="loss")
    if f"{case}/grad_norms" in io:
        start = f"{case}/grad/"
        named = {key.removeprefix(start): value for key, value in io.items() if key.startswith(start)}
        report.gradients(model, about["grad_norm_parameter_order"], io[f"{case}/grad_norms"], named, f"{case}/")


def _guidance(case: dict) -> Guidance:
    return Guidance(
        scale=case["cfg_scale"], schedule=case.get("cfg_schedule", "constant"), interval=case.get("cfg_interval", -1),
        **case.get("cfg_schedule_kwargs", {}),
    )  # fmt: skip


def _guidance_tables(table: dict, report: Report) -> None:
    """Scale of every code but the first, for cases named like `step_0.18` or `rectangular_0.25_0.75`."""
    num_tokens = 1 + table["num_new_tokens_after_the_first"]
    values = next(value for key, value in table.items() if key.startswith("values"))
    for case, expected in values.items():
        schedule, *window = [word for word in case.split("_") if word != "re"]
        schedule += "_re" if "_re" in case else ""
        start, end = [*map(float, window), *([0.05, 1.0][len(window) :])]
        scales = Guidance(table["cfg_scale"], schedule, window_start=start, window_end=end).scales(num_tokens)
        report.equal(f"guidance/{case} first", scales[0], table["cfg_scale"])
        got, wanted = (torch.tensor(values, dtype=torch.float64) for values in (scales[1:], expected))
        report.close(f"guidance/{case}", got, wanted, 1e-12)


def _check_released_size(fixture: Fixture, report: Report) -> None:
    """Weights from the formula, of the sizes that the constructor arguments state."""
    about, io = fixture.about, fixture.io
    codes = io["tokens"].long()
    with torch.device("meta"):
        positions = "learned" if "positional_embedding" in about["fill"] else "rope2d"
        model = GPT(models.gpt(fixture.arguments("resolved_config", "constructor_args"), positions))
    model.load_state_dict(filled(about, model.state_dict()), strict=True, assign=True)
    model.eval()
    with torch.inference_mode():
        logits = model(codes, io["label"])
        report.close("logits_at_positions", logits[0, about["positions"]], io["logits_at_positions"])
        report.close("loss", F.cross_entropy(logits.flatten(0, 1), codes.flatten()), io["loss"])
        statistics = torch.stack([logits[0].mean(-1), logits[0].std(-1)], -1)
        report.close("logits_mean_std", statistics, io["logits_mean_std"])
        for key in [key for key in io if key.startswith("gen/") and key.endswith("/tokens")]:
            case = key.split("/")[1]
            schedule, scale, *window = case.split("_")
            guidance = Guidance(float(scale), "constant" if schedule == "const" else schedule, *map(float, window))
            _guided(model, io, report, case, guidance)


def _guided(model: GPT, io: dict[str, Tensor], report: Report, case: str, guidance: Guidance) -> None:
    """The first codes of a greedy sample; guidance ratios refer to as many codes as were made."""
    expected = io[f"gen/{case}/tokens"].long()
    with recorded_logits() as seen:
        codes = generate(model, io["gen_labels"], expected.shape[1], guidance=guidance, sampling=Sampling(greedy=True))
    report.equal(f"gen/{case}/tokens", codes, expected)
    best = torch.stack(seen, 1).topk(5)
    report.close(f"gen/{case}/top5_values", best.values, io[f"gen/{case}/top5_values"])
    report.equal(f"gen/{case}/top5_ids", best.indices, io[f"gen/{case}/top5_ids"])
