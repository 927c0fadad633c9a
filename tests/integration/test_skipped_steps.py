"""A step that is not finite on several ranks is skipped on all of them and reaches no state."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from common import dist, optim
from common.options import OptimConfig


def take_a_step(rank: int, root: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)
    model, config = nn.Linear(4, 4), OptimConfig(lr=0.1)
    optimizer, average = optim.adamw(model, config), optim.Ema(model, 0.9)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, flag = optim.update(optimizer, config, 0, 10, torch.tensor(1.0))
    average.update(model, flag)
    assert flag.item() == 1.0 and average.updates.item() == 0.0
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value) and torch.equal(average.state_dict()[name], value)
    assert dist.largest(torch.tensor([0.0, 1.0 + rank])).tolist() == [0.0, 2.0]
    dist.close()


def test_gradients_that_are_not_finite_on_two_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(take_a_step, (tmp_path,), nprocs=2)
