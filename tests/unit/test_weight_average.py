"""The weight average follows parameters slowly and buffers at once."""

from __future__ import annotations

import torch
from torch import nn

from common.optim import Ema


def test_parameters_are_averaged_and_buffers_copied() -> None:
    module = nn.BatchNorm1d(3)
    ema = Ema(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(5.0)
        module.running_mean.fill_(7.0)
        module.num_batches_tracked.fill_(9)
    ema.update(module, torch.zeros(()))
    # The first update's decay is min(0.5, 1 / 10).
    assert torch.allclose(ema.module.weight, torch.full((3,), 1.0 + 0.9 * 4))
    assert torch.equal(ema.module.running_mean, module.running_mean)
    assert ema.module.num_batches_tracked == 9
    module.running_mean.fill_(8.0)
    assert ema.module.running_mean[0] == 7.0
