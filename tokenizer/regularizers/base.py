"""The interface between the trainer and a regularizer: the plan of a step and the hooks that act on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common.numerics import step_generator
from tokenizer.layout import Layout
from tokenizer.model import Pass, Tokenizer
from tokenizer.quantizers.base import Quantized, Quantizer


@dataclass
class Plan:
    """What one micro-batch decodes. Regularizers edit it before the forward pass.

    `batch_size`: images of the micro-batch; `rank`: its place among all micro-batches of the step.
    `lengths`: one view is decoded per entry, from that many tokens (None = all N; int64 (B,) = one length per image).
    The first view is the main one.
    `quantizer_options`: keyword arguments of the quantizer's forward pass.
    `kept_codes`: float (B,), the fraction of its codes that each image keeps; None = all images keep all.
    """

    step: int
    seed: int
    batch_size: int
    rank: int
    layout: Layout
    lengths: list[int | Tensor | None] = field(default_factory=lambda: [None])
    quantizer_options: dict[str, Any] = field(default_factory=dict)
    kept_codes: Tensor | None = None

    def generator(self, stream: int) -> torch.Generator:
        """The generator of a random quantity; the same on every rank. Every quantity needs a `stream` of its own."""
        return step_generator(self.seed, self.step, stream)

    @property
    def mine(self) -> slice:
        """The images of this micro-batch among those of this and all earlier ones."""
        return slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)


@dataclass(frozen=True)
class Context:
    """The tokenizer that a regularizer acts on.

    `grid` cells per side, `image_size` pixels, `num_codes` per image in training (redundant ones included), made by
    `quantizer`; `z_channels` of the latents before `quant_conv`, and the `teacher` inside the tokenizer, if any.
    """

    grid: int
    image_size: int
    device: torch.device
    num_codes: int
    quantizer: Quantizer
    z_channels: int
    teacher: nn.Module | None = None


class Regularizer(nn.Module):
    """Override the hooks that are needed. In every step they are called in the order in which they stand here.

    Networks that are attributes are frozen; trained heads belong to the decoder.
    """

    order = 0
    """Regularizers of a smaller `order` are called first."""

    needs_latents = False
    """True if it needs the encoder's output, which training on pairs of codes does not have."""

    needs_head = False
    """True if it uses `Tokenizer.semantic_head`, which is trained only then."""

    trains_prefixes = False
    """True if it decodes fewer than all tokens; validation then reports the quality of a prefix, too."""

    saves_compute = False
    """True if a step costs less with it than without it; `--estimate` leaves it out."""

    def __init__(self, config: Any, context: Context):
        super().__init__()
        self.config, self.context = config, context

    def plan(self, plan: Plan) -> None:
        """Edit the step's plan. Random numbers are drawn for the global batch, then `plan.mine` of them are used."""

    def vectors(
        self, tokenizer: Tokenizer, latents: Tensor | None, quantized: Quantized, vectors: Tensor, plan: Plan
    ) -> Tensor:
        """Code vectors that the decoder gets in place of `vectors`; `latents` is None in training on pairs."""
        return vectors

    def after_decode(self, tokenizer: Tokenizer, images: Tensor, done: Pass, plan: Plan) -> None:
        """Add views to `done.views`, or outputs of networks to `done.extra`. Runs under the run's autocast."""

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        """Weighted scalar losses by name, in fp32. Names that contain "@" are logged but not added to the total."""
        return {}
