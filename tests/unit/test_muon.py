"""Muon beside AdamW: which weights get which, resume, updates that are left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoregressive.models.gpt import GPT
from common import optim
from common.errors import UserError
from common.options import OptimConfig

CONFIG = OptimConfig(lr=1e-3, weight_decay=0.1, warmup=2)
SMALL = GPT.Config(size="tiny", codebook_size=8, num_tokens=4, num_classes=2, residual_dropout=0.0, ffn_dropout=0.0,
                   token_dropout=0.0)  # fmt: skip


def made() -> tuple[GPT, optim.MuonAdamW]:
    torch.manual_seed(0)
    model = GPT(SMALL)
    return model, optim.MuonAdamW(model, CONFIG, 0.02)


def step(model: GPT, optimizer: optim.MuonAdamW, number: int, scale: float = 1.0) -> bool:
    """One update; True when it was left out."""
    codes = torch.randint(8, (3, 4), generator=torch.Generator().manual_seed(number))
    loss = model(codes, torch.tensor([0, 1, 1])).float().square().mean() * scale
    optimizer.zero_grad()
    loss.backward()
    return bool(optim.update(optimizer, CONFIG, number, 10, loss)[1])


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_block_matrices_are_muons_and_everything_else_is_adamws() -> None:
    model, optimizer = made()
    names = {p: name for name, p in model.named_parameters()}
    muon = {names[p] for group in optimizer.muon.param_groups for p in group["params"]}
    others = {names[p] for group in optimizer.others.param_groups for p in group["params"]}
    assert muon == {name for name, p in model.named_parameters() if name.startswith("layers.") and p.dim() == 2}
    assert not muon & others and muon | others == set(names.values())
    step(model, optimizer, 5)
    muon_rate, other_rate = (part.param_groups[0]["lr"] for part in (optimizer.muon, optimizer.others))
    assert muon_rate == pytest.approx(0.02 / 1e-3 * other_rate) and other_rate > 0


def test_muon_moves_a_matrix_by_about_equal_singular_values() -> None:
    """A gradient of singular values 1 to 20 moves it by ones within 0.5 to 1.5, where torch's iteration stops."""
    stack = nn.ModuleList([nn.Linear(16, 16)])
    optimizer = optim.MuonAdamW(stack, OptimConfig(lr=1e-3, weight_decay=0.0), 0.02)
    before = stack[0].weight.detach().clone()
    turns = [torch.linalg.qr(torch.randn(16, 16)).Q for _ in range(2)]
    stack[0].weight.grad = turns[0] @ torch.diag(torch.linspace(1, 20, 16)) @ turns[1]
    optimizer.step()
    sizes = torch.linalg.svdvals((before - stack[0].weight.detach()) / 0.02)
    assert sizes.max() < 1.5 and sizes.min() > 0.5


def test_a_resumed_run_repeats_the_whole_one() -> None:
    whole, optimizer = made()
    for number in range(6):
        step(whole, optimizer, number)
    first, optimizer = made()
    for number in range(3):
        step(first, optimizer, number)
    second, again = made()
    second.load_state_dict(first.state_dict())
    optim.restore(again, optimizer.state_dict())
    for number in range(3, 6):
        step(second, again, number)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_an_update_that_is_not_finite_changes_nothing() -> None:
    model, optimizer = made()
    step(model, optimizer, 0)
    before = weights(model)
    moments = [v.clone() for state in optimizer.muon.state.values() for v in state.values()]
    assert step(model, optimizer, 1, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    kept = [v for state in optimizer.muon.state.values() for v in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, kept, strict=True))
    assert not step(model, optimizer, 1)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_module_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="muon_lr finds no matrices"):
        optim.MuonAdamW(nn.Linear(3, 3), CONFIG, 0.02)
