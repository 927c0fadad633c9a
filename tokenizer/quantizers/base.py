"""The interface of quantizers, and the record of which codes are in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common import dist

USAGE_WINDOW = 65536
AT_ONCE = 2**26
"""Distances or inner products of latents and codes that are computed at once: 256 MB."""
NO_CODES = (
    "this tokenizer is continuous (quantizer kl): its vectors have no codes to store, look up or generate; "
    "use a tokenizer with another model.quantizer, or Tokenizer.encode_vectors and decode_vectors"
)


@dataclass
class Quantized:
    """The result of a quantizer.

    vectors: (B,e,...) like the latents, to which they pass gradients. codes: int64 (B,positions), or None where the
    vectors are continuous. losses: by name, already weighted.
    """

    vectors: Tensor
    codes: Tensor | None
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """latents (B,latent_dim,H,W) -> `Quantized` with vectors (B,codebook_dim,H,W).

    groups: codes per position. step: the 0-based training step, set by the trainer.
    """

    groups = 1
    continuous = False
    """True if vectors have no codes."""
    needs_grid = False
    """True if latents must be a grid, as those of 2D encoders are."""

    def __init__(self, config: Any, codebook_dim: int):
        super().__init__()
        self.config, self.codebook_dim = config, codebook_dim
        self.step = 0

    @property
    def latent_dim(self) -> int:
        return self.codebook_dim

    def num_codes(self, cells: int) -> int:
        """Codes of an image whose latents have this many positions."""
        return cells

    def forward(self, latents: Tensor) -> Quantized:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def refresh(self, optimizer: torch.optim.Optimizer, average: Quantizer | None, skipped: Tensor) -> None:
        """Called by the trainer after every optimizer step; quantizers with a codebook refresh do it here.

        `skipped` is 1.0 if the step was not finite: then nothing may change.
        """

    def refresh_state(self) -> dict[str, Tensor]:
        """What a resumed run needs to refresh the codebook exactly as an uninterrupted one; buffers by name."""
        return {name: buffer for name, buffer in self.named_buffers() if name.rpartition(".")[2] == "chosen"}

    def load_refresh_state(self, state: dict[str, Tensor]) -> None:
        for name, buffer in self.refresh_state().items():
            buffer.copy_(state[name])


class CodeQuantizer(Quantizer):
    """A quantizer with `codebook_size` codes K."""

    def __init__(self, config: Any, codebook_size: int, codebook_dim: int):
        super().__init__(config, codebook_dim)
        self.codebook_size = codebook_size
        self._start_usage()

    def lookup(self, codes: Tensor) -> Tensor:
        """codes int64 (...,) -> vectors (...,e), fp32."""
        raise TypeError(f"{type(self).__name__} defines no lookup")

    def arrange(self, codes: Tensor, height: int, width: int) -> Tensor:
        """codes int64 (B,L) -> vectors (B,e,H,W)."""
        vectors = self.lookup(codes).transpose(1, 2)
        # Convolutions choose their kernel by the strides; these do not depend on the number of images.
        return vectors.unsqueeze(2) if height == 1 else vectors.unflatten(2, (height, width))

    def codebook(self) -> Tensor:
        """All code vectors (K,e), fp32."""
        return self.lookup(torch.arange(self.codebook_size, device=self.codebook_used.device))

    def _start_usage(self) -> None:
        # The last codes seen in training, newest last; -1 = not filled yet. Float as in released files.
        self.register_buffer("codebook_used", torch.full((USAGE_WINDOW,), -1.0))

    def seen(self) -> Tensor:
        """1.0 for codes in the window, else 0.0; float (K,)."""
        seen = torch.zeros(self.codebook_size + 1, device=self.codebook_used.device)
        seen[self.codebook_used.long()] = 1  # the -1 of unfilled slots lands in the extra last slot
        return seen[:-1]

    def usage(self) -> Tensor:
        """Share of the codebook in use lately, on all ranks."""
        return self.seen().mean()

    @torch.no_grad()
    def _remember(self, codes: Tensor) -> None:
        """Record the codes (n,) of this rank; every rank records those of all ranks."""
        self._record(torch.cat(dist.all_gather(codes)))

    def _record(self, codes: Tensor) -> None:
        recent = codes[-USAGE_WINDOW:].float()
        self.codebook_used.copy_(torch.cat([self.codebook_used[len(recent) :], recent]))


def to_rows(latents: Tensor) -> Tensor:
    """(B,e,H,W) -> fp32 (B*H*W,e), running over images, rows, columns."""
    return latents.float().permute(0, 2, 3, 1).flatten(0, 2)


def to_maps(rows: Tensor, latents: Tensor) -> Tensor:
    """Inverse of `to_rows` for rows of any width, with the batch and the sides of `latents`."""
    return rows.unflatten(0, (len(latents), *latents.shape[2:])).permute(0, 3, 1, 2)
