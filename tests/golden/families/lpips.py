"""LPIPS: a narrow trunk with stored weights, and the full one with weights from the formula."""

from __future__ import annotations

import torch

from common.networks.lpips import LPIPSNetwork, _heads_file, _load
from tests.golden.fixture import Fixture, Report, filled


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and "lin0.model.1.weight" in fixture.keys


def check(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    report.recorded = about.get("fp32_versus_fp64", {})
    x, y = fixture.images("x"), fixture.images("y").requires_grad_()
    if fixture.kind == "fullsize":
        network = LPIPSNetwork().eval().requires_grad_(False)
        weights = filled(about, network.state_dict())
        network.load_state_dict(weights)
        report.close("distance_formula_heads", network(x, y), io["distance_formula_heads"].flatten())
        network.load_state_dict({**weights, **_load(_heads_file(None))})
        report.close("distance_released_heads", network(x, y), io["distance_released_heads"].flatten())
        return
    network = narrow(fixture)
    distance = network(x, y)
    report.close("distance", distance, io["distance"].flatten())
    for stage, features in enumerate(network.features(x)):
        if f"trunk_{stage}" in io:
            report.close(f"trunk_{stage}", features, io[f"trunk_{stage}"])
    (gradient,) = torch.autograd.grad(distance.mean(), y)
    report.close("grad_second", gradient, io["grad_second"])


def narrow(fixture: Fixture) -> LPIPSNetwork:
    network = LPIPSNetwork(channels=fixture.about["reduced_dimensions"]["trunk_channels"]).eval().requires_grad_(False)
    network.load_state_dict(fixture.weights)
    return network
