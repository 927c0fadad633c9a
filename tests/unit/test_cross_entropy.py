"""Cross-entropy in chunks: the same loss and gradient, in less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autoregressive import cross_entropy as module
from autoregressive.cross_entropy import cross_entropy
from common.estimate import _Ledger


@pytest.mark.parametrize("chunk", [1, 3 * 64, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradient_are_those_of_torch(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 to 1e-6; bf16 gradients are rounded once, as torch's."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    logits = (4 * torch.randn(5, 7, 64)).to(dtype).requires_grad_()
    targets, weights = torch.randint(64, (5, 7)), torch.rand(5, 7)
    found = cross_entropy(logits, targets)
    expected = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(5, 7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    mine, theirs = (torch.autograd.grad((loss * weights).mean(), logits)[0] for loss in (found, expected))
    assert mine.dtype == dtype
    rounding = {"rtol": 2**-7, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(mine, theirs, **rounding)


def test_bf16_logits_are_kept_once() -> None:
    """What autograd keeps for the backward pass: 2 bytes a logit; torch on float32 copies keeps 4 in another tensor."""
    logits = torch.randn(64, 16384, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(16384, (64,))
    kept = {}
    for name, loss in {"ours": cross_entropy, "torch": lambda x, y: F.cross_entropy(x.float(), y)}.items():
        ledger = _Ledger([])
        with ledger:
            result = loss(logits, targets).mean()
            kept[name] = ledger.peak
        del result
    assert kept["ours"] < 1.01 * logits.nbytes and kept["torch"] > 1.9 * logits.nbytes
