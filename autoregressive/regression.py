"""Embedding regression: a generator's hidden states should know what codes look like, not only what they are called."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.config import RegressionConfig
from common.errors import UserError

__all__ = ["RegressedGenerator"]


class RegressedGenerator(nn.Module):
    """A generator and the heads that training adds to it.

    An early block's state regresses the tokenizer's vector of the code that was fed last, a late block's that of the
    code to come; targets are the true codes, also where input noise has replaced what is fed. Each loss is
    1 - mean cosine. Sampling needs no head, so the generator is saved without them.
    Source: reAR (2025), codebook embedding regularization.
    """

    def __init__(self, model: nn.Module, config: RegressionConfig, codebook: Tensor) -> None:
        """codebook: float (codebook_size, e). Raises: UserError for a generator without such states, unknown layers."""
        super().__init__()
        if not hasattr(model, "forward_with_states"):
            raise UserError("regression reads a GPT's hidden states; this generator gives none, set regression=null")
        self.layers = (config.current_layer, config.next_layer or model.num_layers)
        if not all(1 <= layer <= model.num_layers for layer in self.layers):
            raise UserError(f"regression got blocks {self.layers}; this generator has 1 to {model.num_layers}")
        self.model, self.weight = model, config.weight
        width, out = model.width, codebook.shape[1]
        self.heads = nn.ModuleDict({
            name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out))
            for name in ("current", "next")
        })  # fmt: skip
        self.register_buffer("codebook", codebook.detach().float(), persistent=False)

    def forward(
        self, fed: Tensor, labels: Tensor, drop_labels: Tensor, codes: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B,N,codebook_size) and the weighted losses by name; fed and codes, int64 (B,N): as fed, and true."""
        logits, (early, late) = self.model.forward_with_states(fed, labels, drop_labels, self.layers)
        target = F.embedding(codes, self.codebook)
        return logits, {
            # The first state has been fed the class alone.
            "regression_current": self.weight * _distance(self.heads["current"](early[:, 1:]), target[:, :-1]),
            "regression_next": self.weight * _distance(self.heads["next"](late), target),
        }


def _distance(predicted: Tensor, target: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(predicted.float(), target, dim=-1).mean()
