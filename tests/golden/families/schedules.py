"""Learning rates and annealing, one fixture per entry of the file."""

from __future__ import annotations

import re
from typing import Any

import torch

from autoregressive.models.rar import random_order_probability
from common.optim import rate
from common.options import OptimConfig
from tests.golden.fixture import Fixture, Report, Skip
from tokenizer.quantizers.perturbation import anneal


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "schedules"


def parts(fixture: Fixture) -> list[str]:
    about = fixture.about
    return [*about["schedules"], *(key for key in about if key.startswith("robustok_"))]


def check(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    if fixture.part in about["schedules"]:
        _library(fixture.part, about["schedules"][fixture.part], report)
    elif fixture.part == "robustok_blur_fade":
        raise Skip("OPTIONAL: the discriminator's warm-up blur is not built; released configs fade it out in one step")
    else:
        CHECKS[fixture.part](about[fixture.part], report)


def _compare(report: Report, name: str, got: list[float], expected: list[float]) -> None:
    report.close(name, torch.tensor(got, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), 1e-12)


def _library(name: str, entry: dict[str, Any], report: Report) -> None:
    """The functions of GigaTok's and ReTok's trainers."""
    given = entry["function_arguments"]
    config = OptimConfig(
        lr=given["base_lr"], warmup=given["warmup_length"], end_lr=given.get("end_lr", 0.0),
        schedule="constant" if name == "const" else "cosine" if name.startswith("cosine") else "wsd",
    )  # fmt: skip
    if "fract_decay" in given:
        config.cooldown_fraction = given["fract_decay"]
        config.cooldown_shape = given.get("decay_type", "sqrt")
        config.end_lr = given.get("final_lr_factor", 0.0) * config.lr
    if "cooldown_steps" in given:
        config.cooldown_fraction = given["cooldown_steps"] / given["steps"]
        config.cooldown_shape, config.end_lr = str(given["cooldown_power"]), given["cooldown_end_lr"]
    _compare(report, name, [rate(config, step, given["steps"]) for step in range(len(entry["lr"]))], entry["lr"])


def _rar(entry: dict[str, Any], report: Report) -> None:
    """The rate of every update; the list goes on behind the last one, where no update happens."""
    given = entry["arguments"]
    steps = given["num_training_steps"]
    config = OptimConfig(
        lr=given["base_lr"], warmup=given["num_warmup_steps"], warmup_lr=0.0, end_lr=given["end_lr"], schedule="cosine"
    )
    _compare(report, "lr", [rate(config, step, steps) for step in range(steps)], entry["lr"][:steps])


def _per_epoch(entry: dict[str, Any], report: Report) -> None:
    """timm's cosine; the settings stand in each list's name, the number of epochs in its length."""
    for name, rates in entry.items():
        if not isinstance(rates, list):
            continue
        words = dict(re.findall(r"(warmup|min_lr) ([\d.e-]+)", name))
        peaks = re.findall(r"\d+(?:\.\d+)?e-\d+", name.replace(f"min_lr {words['min_lr']}", ""))
        epoch = 3  # any number of steps per epoch
        config = OptimConfig(
            lr=float(peaks[-1]), warmup=int(words["warmup"]) * epoch, warmup_lr=1e-5, end_lr=float(words["min_lr"]),
            schedule="cosine_epochs", epoch_steps=epoch,
        )  # fmt: skip
        steps = (len(rates) - 1) * epoch
        for within in range(epoch):
            got = [rate(config, place * epoch + within, steps) for place in range(len(rates) - 1)]
            _compare(report, f"{name.split(' ')[0]} +{within}", got, rates[:-1])
        _compare(report, f"{name.split(' ')[0]} end", [rate(config, steps, steps)], rates[-1:])


def _perturbation(entry: dict[str, Any], report: Report) -> None:
    epochs = range(len(entry["ratio"]))
    ratios = [anneal(epoch, entry["anneal_start"], entry["anneal_end"], entry["end_ratio"]) for epoch in epochs]
    _compare(report, "ratio", ratios, entry["ratio"])
    report.equal("delta_used", [int(ratio * entry["delta"]) for ratio in ratios], entry["delta_used"])


def _orders(entry: dict[str, Any], report: Report) -> None:
    start, end = entry["randomness_anneal_start"], entry["randomness_anneal_end"]
    got = [random_order_probability(step, start, end) for step in entry["steps"]]
    _compare(report, "probability", got, entry["probability_of_a_random_order"])


CHECKS = {
    "robustok_rar_cosine": _rar, "robustok_tokenizer_cosine_per_epoch": _per_epoch,
    "robustok_perturbation_annealing": _perturbation, "robustok_rar_order_annealing": _orders,
}  # fmt: skip
