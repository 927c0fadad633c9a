"""The RAR generator."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F

from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.rar import RAR
from tests.golden import models
from tests.golden.families.gpt import recorded_logits
from tests.golden.fixture import Fixture, Report, filled


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and bool({"generator_config", "generator"} & fixture.about.keys())


def check(fixture: Fixture, report: Report) -> None:
    if fixture.kind == "fullsize":
        _check_released_size(fixture, report)
        return
    about, io = fixture.about, fixture.io
    model = RAR(models.rar(about["generator_config"], about["codebook_size"]))
    model.load_state_dict(fixture.weights, strict=True)
    model.eval()
    shift = model.codebook_size + 1
    for case in [case for case in ("train_orders", "train_raster", "train_null") if f"{case}/loss" in io]:
        _training(model, fixture, report, case)
    report.recorded = {}
    for case, settings in about["generation_cases"].items():
        _generation(model, fixture, report, case, settings)
    for case, settings in about.get("released_schedules_256_steps", {}).items():
        _scales(report, f"{case}, 256 codes", settings)
    if "condition" not in io:
        return
    report.equal("condition", io["labels"] + shift, io["condition"])
    report.equal("none_condition", torch.full_like(io["labels"], model.num_classes + shift), io["none_condition"])
    forced = generate(
        model, io["gen/labels"], guidance=_guidance(6.0, 1.15), sampling=Sampling(greedy=True),
        forced=io["tf/tokens_in"].squeeze(-1), keep=io["tf/mask"].squeeze(-1),
    )  # fmt: skip
    report.equal("tf/tokens_out", forced, io["tf/tokens_out"])


def _generation(model: RAR, fixture: Fixture, report: Report, case: str, settings: dict[str, Any]) -> None:
    io, temperature = fixture.io, settings["randomize_temperature"]
    labels = io.get("gen/labels", io["labels"])
    with recorded_logits() as seen:
        sampling = Sampling(temperature=temperature, greedy=True)
        codes = generate(model, labels, guidance=_scales(report, case, settings), sampling=sampling)
    logits = torch.stack(seen, 1) / temperature
    report.equal(f"gen/{case}/tokens", codes, io[f"gen/{case}/tokens"])
    if f"gen/{case}/logits" in io:
        report.close(f"gen/{case}/logits", logits, io[f"gen/{case}/logits"])
        return
    best = logits.topk(5)
    report.close(f"gen/{case}/top5_values", best.values, io[f"gen/{case}/top5_values"])
    report.equal(f"gen/{case}/top5_ids", best.indices, io[f"gen/{case}/top5_ids"])
    # The mean is near zero, where float32 has fewer digits.
    spread = torch.stack([logits.mean(-1), logits.std(-1)], dim=-1)
    report.close(f"gen/{case}/logits_mean_std", spread, io[f"gen/{case}/logits_mean_std"])


def _scales(report: Report, case: str, settings: dict[str, Any]) -> Guidance:
    guidance = _guidance(settings["guidance_scale"], settings["guidance_scale_pow"])
    scales = settings["effective_scale_per_step"]
    if not isinstance(scales, str):
        report.close(f"gen/{case}/scales", torch.tensor(guidance.scales(len(scales))), torch.tensor(scales), 1e-6)
    return guidance


def _guidance(scale: float, power: float) -> Guidance:
    """The original's scale 0 means what our 1 does: no unconditional pass."""
    return Guidance(max(scale, 1.0), "power_cosine", power=power)


def _training(model: RAR, fixture: Fixture, report: Report, case: str) -> None:
    io = fixture.io
    report.recorded = fixture.about["fp32_versus_fp64_max_relative_difference"][case]
    raster = torch.arange(model.num_tokens).expand_as(io["orders"])
    orders = io["orders"] if case == "train_orders" else raster
    # The original calls the case without classes in the same orders as its stored labels say.
    labels = torch.full_like(io["labels"], model.num_classes) if case == "train_null" else io["labels"]
    if not torch.equal(io["tokens"].gather(1, orders), io[f"{case}/shuffled_labels"]):
        orders = io["orders"]
    shuffled = io["tokens"].gather(1, orders)
    report.equal(f"{case}/shuffled_labels", shuffled, io[f"{case}/shuffled_labels"])
    model.zero_grad()
    logits = model.lm_head(model.states(shuffled, labels, orders))
    rows = logits
    if io[f"{case}/logits"].shape != logits.shape:  # only some are stored: "rows 0, 1, 8, 15 of the ..."
        meaning = fixture.about["tensors"][f"{case}/logits"]["meaning"].partition(" of ")[0]
        rows = logits[:, [int(number) for number in re.findall(r"\d+", meaning)]]
    report.close(f"{case}/logits", rows, io[f"{case}/logits"], key="logits")
    again = model(io["tokens"], labels, orders=orders)
    loss = F.cross_entropy(again.flatten(0, 1), io["tokens"].flatten())
    report.close(f"{case}/loss", loss, io[f"{case}/loss"], key="loss")
    if torch.equal(orders, raster):
        report.close(f"{case}/raster", model(io["tokens"], labels), again)
    if f"{case}/accuracy" in io:
        correct = (logits[:, :-1].argmax(-1) == shuffled).float().mean()
        report.close(f"{case}/accuracy", correct, io[f"{case}/accuracy"])
    if f"{case}/grad_norms" not in io:
        return
    loss.backward()
    order, start = fixture.about["grad_norm_parameter_order"], f"{case}/grad/"
    tables = {"pos_embed_first": "pos_embed", "target_aware_pos_embed_first": "target_aware_pos_embed"}
    tables["timesteps_first"] = "timesteps_embeddings"
    named = {key.removeprefix(start): value for key, value in io.items() if key.startswith(start)}
    for key, name in tables.items():
        expected = named.pop(key)
        got = dict(model.named_parameters())[name].grad[:, : expected.shape[1]]
        report.close(f"{start}{key}", got, expected, key=f"grad/{key}")
    report.gradients(model, order, io[f"{case}/grad_norms"], named, f"{case}/")


class _Beginning(Guidance):
    """Only the first codes are stored, while the schedule runs over `whole` of them."""

    whole: int

    def scales(self, num_tokens: int) -> list[float]:
        return super().scales(self.whole)[:num_tokens]


def _check_released_size(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    with torch.device("meta"):
        model = RAR(models.rar(about["generator"], io["logits_at_positions"].shape[-1]))
    model.load_state_dict(filled(about, model.state_dict()), strict=True, assign=True)
    model.eval()
    with torch.inference_mode():
        shuffled = io["tokens"].gather(1, io["order"])
        logits = model.lm_head(model.states(shuffled, io["label"], io["order"]))
        report.close("logits_at_positions", logits[0, about["positions"]], io["logits_at_positions"])
        report.close("loss", F.cross_entropy(logits[:, :-1].flatten(0, 1), shuffled.flatten()), io["loss"])
        count, temperature = io["gen/tokens"].shape[1], 1.02
        guidance = _Beginning(6.0, "power_cosine", power=1.15)
        guidance.whole = model.num_tokens
        with recorded_logits() as seen:
            sampling = Sampling(temperature=temperature, greedy=True)
            codes = generate(model, io["label"], count, guidance=guidance, sampling=sampling)
    report.equal("gen/tokens", codes, io["gen/tokens"])
    best = torch.stack(seen, 1).topk(5)
    report.equal("gen/top5_ids", best.indices, io["gen/top5_ids"])
    report.close("gen/top5_values", best.values / temperature, io["gen/top5_values"])
