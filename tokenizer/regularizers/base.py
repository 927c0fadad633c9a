"""What the trainer and a regularizer say to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common.numerics import step_generator
from tokenizer.layout import Layout
from tokenizer.model import Pass
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.perturbation import Perturbation


@dataclass
class Plan:
    """What one step will decode. Regularizers edit it before the forward pass.

    `num_tokens`: kept tokens of the main view (None = all N; int64 (B,) for per-image lengths).
    `also_num_tokens`: a second view from the same codes. `shortcut`: a view straight from the CNN's map.
    `semantic`: the semantic head runs on the main view. `perturbation`: the decoder sees some wrong codes.
    `kept_scales`: int64 (B,), scales that each image keeps of a multi-scale quantizer's.
    `guides`: functions from images to features (B,z_channels), which pass through `quant_conv` into `Pass.extra`.
    """

    step: int
    seed: int
    batch_size: int
    rank: int
    layout: Layout
    num_tokens: int | Tensor | None = None
    also_num_tokens: int | None = None
    shortcut: bool = False
    semantic: bool = False
    perturbation: Perturbation | None = None
    kept_scales: Tensor | None = None
    guides: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def generator(self, stream: int) -> torch.Generator:
        """The same on every rank; `stream` keeps regularizers apart."""
        return step_generator(self.seed, self.step, stream)


@dataclass(frozen=True)
class Context:
    """What a regularizer may know of the tokenizer it acts on.

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


class Regularizer:
    """Override what is needed. Plans are made in `order`, smaller first."""

    order = 0

    needs_latents = False
    """Whether it acts on what the encoder made of the images: nothing that training on pairs of codes has."""

    def __init__(self, config: Any, context: Context):
        self.config, self.context = config, context

    def plan(self, plan: Plan) -> None:
        """Edit the step's plan."""

    def losses(self, images: Tensor, done: Pass, plan: Plan) -> dict[str, Tensor]:
        """Weighted scalar losses by name; names ending in `@...` are logged but not added up."""
        return {}
