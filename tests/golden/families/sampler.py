"""Temperature, top-k and top-p."""

from __future__ import annotations

import torch

from autoregressive.config import Sampling
from autoregressive.generate import filter_logits
from tests.golden.fixture import Fixture, Report


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and isinstance(fixture.about.get("cases"), list) and "logits" in fixture.io


def check(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    logits = io["logits"][:, -1]
    for case in sorted({name.partition("/")[0] for name in io if "/" in name}):
        temperature, top_k, top_p = (float(word[1:]) for word in case.split("_"))
        filtered = filter_logits(logits.clone(), Sampling(temperature=temperature, top_k=int(top_k), top_p=top_p))
        probabilities = filtered.softmax(-1)
        report.equal(f"{case}/kept", probabilities > 0, io[f"{case}/probs"] > 0)
        report.close(f"{case}/probs", probabilities, io[f"{case}/probs"])
        # Rows with ties have several best codes, so the values are compared, not the places.
        best = filtered.gather(-1, io[f"{case}/argmax"])[:, 0]
        report.close(f"{case}/argmax", best, filtered.amax(-1))
    for name in [name for name in io if name.startswith("filter_")]:
        _, top_k, top_p, keep = name.split("_")
        if keep == "keep1":  # "keep3" is a floor under top-p that no sampler of the papers sets
            filtered = filter_logits(logits.clone(), Sampling(top_k=int(top_k[1:]), top_p=float(top_p[1:])))
            report.equal(f"{name} removed", filtered.isinf(), io[name].isinf())
            shown = ~io[name].isinf()
            report.close(name, torch.where(shown, filtered, 0), torch.where(shown, io[name], 0))
