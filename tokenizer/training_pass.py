"""The forward pass of tokenizer training: encode, quantize, decode every view, run the regularizers' hooks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common.errors import UserError
from tokenizer.model import Pass, Tokenizer
from tokenizer.quantizers.base import Quantized
from tokenizer.regularizers.base import Plan, Regularizer

__all__ = ["TrainingPass"]


class TrainingPass(nn.Module):
    """What DDP and FSDP wrap. Hooks that use the tokenizer's parameters run inside of it.

    Args:
        frozen: names of the tokenizer's modules that are not trained and stay in evaluation mode.
        regularizers: in the order in which their hooks run. They hold no trained parameters and are not sharded.

    Raises: UserError for a name that is not a module, or a regularizer that needs a semantic head that is not there.
    """

    def __init__(self, tokenizer: Tokenizer, frozen: Sequence[str] = (), regularizers: Sequence[Regularizer] = ()):
        super().__init__()
        self.tokenizer, self.frozen, self.regularizers = tokenizer, frozen, tuple(regularizers)
        for name in frozen:
            part = getattr(tokenizer, name, None)
            if not isinstance(part, nn.Module):
                names = [name for name, _ in tokenizer.named_children()]
                raise UserError(f"freeze names {name!r}; expected some of {', '.join(names)}")
            part.requires_grad_(False)
        reader = next((each for each in self.regularizers if each.needs_head), None)
        if reader and tokenizer.semantic_head is None:
            raise UserError(f"{type(reader).__name__} needs decoder.semantic_head; set its depth and width")
        if not reader and tokenizer.semantic_head is not None:
            tokenizer.semantic_head.requires_grad_(False)

    def train(self, mode: bool = True) -> TrainingPass:
        super().train(mode)
        for name in self.frozen:
            getattr(self.tokenizer, name).eval()
        return self

    def forward(self, images: Tensor, plan: Plan, codes: Tensor | None = None) -> Pass:
        """images (B,3,H,W); codes (B,L) are decoded instead of the images' own, as post-training does."""
        tokenizer = self.tokenizer
        if codes is None:
            latents, spatial = tokenizer.latents(images)
            tokenizer.quantizer.step = plan.step
            quantized = tokenizer.quantizer(latents, **plan.quantizer_options)
        else:
            latents, spatial, quantized = None, None, Quantized(tokenizer.vectors(codes), codes, {})
        vectors = quantized.vectors
        for each in self.regularizers:
            vectors = each.vectors(tokenizer, latents, quantized, vectors, plan)
        views = [tokenizer.decode_vectors(vectors, length) for length in plan.lengths]
        done = Pass(views, quantized, vectors, spatial)
        for each in self.regularizers:
            each.after_decode(tokenizer, images, done, plan)
        return done
