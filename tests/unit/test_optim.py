"""Optimizers: what a resume takes from the checkpoint and what it takes from the config."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from common import optim
from common.errors import UserError
from common.options import OptimConfig
from evaluations.linear_probe import Lars

BEFORE = OptimConfig(lr=1e-3, weight_decay=0.1)
CHANGES = {
    "lr": 5e-3, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.7, "decay_vectors": True, "max_grad_norm": 0.01,
    "schedule": "wsd", "warmup": 40, "warmup_lr": 9e-3, "end_lr": 2e-3, "cooldown_fraction": 0.9,
    "cooldown_shape": "linear", "epoch_steps": 7, "muon_lr": 0.3,
}  # fmt: skip
NEEDS = {
    "warmup_lr": {"warmup": 40}, "cooldown_fraction": {"schedule": "wsd"}, "cooldown_shape": {"schedule": "wsd"},
    "epoch_steps": {"schedule": "cosine_epochs"},
}  # fmt: skip
STEP, STEPS = 27, 100


def made(config: OptimConfig, muon_lr: float | None) -> tuple[nn.ModuleList, object]:
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    return module, optim.MuonAdamW(module, config, muon_lr) if muon_lr else optim.adamw(module, config)


def step(module: nn.ModuleList, optimizer: object, config: OptimConfig, number: int) -> None:
    loss = sum((layer(torch.ones(2, 4)) * (number + 1)).square().mean() for layer in module)
    optimizer.zero_grad()
    loss.backward()
    optim.update(optimizer, config, number, STEPS, loss)


def stated(optimizer: object) -> list[dict[str, object]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("name", "muon"), [(name, muon) for name in CHANGES for muon in (False, True) if muon or name != "muon_lr"]
)
def test_every_changed_option_is_in_force_after_a_resume(name: str, muon: bool) -> None:
    """The resumed optimizer takes the step that a new one with the changed config and the same moments takes."""
    before = dataclasses.replace(BEFORE, **NEEDS.get(name, {}))
    muon_lr = 0.02 if muon else None
    after = before if name == "muon_lr" else dataclasses.replace(before, **{name: CHANGES[name]})
    new_muon_lr = CHANGES["muon_lr"] if name == "muon_lr" else muon_lr
    module, optimizer = made(before, muon_lr)
    for number in range(3):
        step(module, optimizer, before, number)
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    results = []
    for config, rate in ((before, muon_lr), (after, new_muon_lr)):
        again, resumed = made(config, rate)
        again.load_state_dict(kept)
        optim.restore(resumed, optimizer.state_dict())
        assert stated(resumed) == stated(made(config, rate)[1]), "a hyperparameter came from the checkpoint"
        step(again, resumed, config, STEP)
        results.append([p.detach().clone() for p in again.parameters()])
    assert not all(torch.equal(old, new) for old, new in zip(*results, strict=True)), f"{name} changes nothing"


def test_every_option_is_tried() -> None:
    assert {field.name for field in dataclasses.fields(OptimConfig)} | {"muon_lr"} == CHANGES.keys()


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_weight_decay_leaves_vectors_alone_unless_asked(decay_vectors: bool) -> None:
    module = nn.Linear(3, 2)
    nn.init.ones_(module.weight), nn.init.ones_(module.bias)
    given = OptimConfig(lr=0.1, weight_decay=0.5, decay_vectors=decay_vectors, schedule="constant", warmup=0)
    optimizer = optim.adamw(module, given)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optim.update(optimizer, given, 0, 10, torch.tensor(1.0))
    torch.testing.assert_close(module.weight.data, torch.full((2, 3), 0.95))
    torch.testing.assert_close(module.bias.data, torch.full((2,), 0.95 if decay_vectors else 1.0))


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_moments_and_counts_come_from_the_checkpoint(decay_vectors: bool) -> None:
    """They stay with their parameter when `decay_vectors` changes."""
    module, optimizer = made(BEFORE, None)
    for number in range(3):
        step(module, optimizer, BEFORE, number)
    again, resumed = made(dataclasses.replace(BEFORE, decay_vectors=decay_vectors), None)
    optim.restore(resumed, optimizer.state_dict())
    for mine, theirs in zip(again.parameters(), module.parameters(), strict=True):
        assert resumed.state[mine].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, optimizer.state[theirs][key]) for key, value in resumed.state[mine].items())


def test_lars_keeps_the_stated_hyperparameters_too() -> None:
    values = [nn.Parameter(torch.ones(2, 2))]
    resumed = Lars(values, lr=0.3, weight_decay=0.4)
    optim.restore(resumed, Lars(values, lr=0.1, weight_decay=0.2).state_dict())
    assert stated(resumed) == [{"lr": 0.3, "weight_decay": 0.4, "momentum": 0.9, "trust": 1e-3}]


@pytest.mark.parametrize("other", ["muon", "frozen"])
def test_the_state_of_other_parameters_is_refused(other: str) -> None:
    module, optimizer = made(BEFORE, None)
    saved = made(BEFORE, 0.02)[1].state_dict() if other == "muon" else optimizer.state_dict()
    if other == "frozen":
        module[0].requires_grad_(False)
        optimizer = optim.adamw(module, BEFORE)
    with pytest.raises(UserError, match="holds the state of other parameters"):
        optim.restore(optimizer, saved)


def test_muon_is_refused_when_the_checkpoint_has_none() -> None:
    with pytest.raises(UserError, match=r"optim\.muon_lr"):
        optim.restore(made(BEFORE, 0.02)[1], made(BEFORE, None)[1].state_dict())
