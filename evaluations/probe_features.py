"""What a linear probe reads: one vector per image, from a frozen tokenizer or generator in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoregressive.models.gpt import GPT
from common.errors import UserError
from tokenizer.model import Tokenizer

__all__ = ["Features", "generator_features", "tokenizer_features"]


@dataclass(frozen=True)
class Features:
    """`read`: images (B,3,H,W) in [-1,1] -> float (B,width)."""

    read: Callable[[Tensor], Tensor]
    width: int


def tokenizer_features(tokenizer: Tokenizer, which: str, num_tokens: int | None = None) -> Features:
    """Averages over the first `num_tokens` tokens (default all N; redundant ones never count).

    `which`: "encoder" is what leaves the encoder's last norm, "fix_dim" what enters the quantizer's projection,
    "decoder" the decoder's stream at the depth of the semantic head. Source: GigaTok, tokenizer/lin_probe.
    Raises: UserError for a part this tokenizer has not, or more tokens than it makes.
    """
    count = num_tokens or tokenizer.num_tokens
    if not 1 <= count <= tokenizer.num_tokens:
        raise UserError(f"--num-code is {num_tokens}; this tokenizer makes 1 to {tokenizer.num_tokens} tokens")
    readers = {"encoder": _encoder_tokens, "fix_dim": _projected_tokens, "decoder": _decoder_stream}
    if which not in readers:
        raise UserError(f"features got {which!r}; expected {', '.join(readers)}")

    def read(images: Tensor) -> Tensor:
        return readers[which](tokenizer, images, count).float().mean(dim=1)

    return Features(read, _width(read, tokenizer))


def generator_features(model: GPT, tokenizer: Tokenizer, layer: int | None, num_tokens: int | None = None) -> Features:
    """Averages over positions of the hidden states after block `layer` (default the middle one), class hidden.

    Source: GigaTok, autoregressive/lin_probe. There dropout stays on while the probe trains; here the generator is
    always in eval mode, so the same image has the same features in training and in evaluation.
    Raises: UserError for a generator without such features, or a layer it has not.
    """
    if not hasattr(model, "features"):
        raise UserError(f"a linear probe reads a GPT's hidden states; {type(model).__name__} offers none")
    layer = layer or model.num_layers // 2
    count = num_tokens or model.num_tokens
    if not 1 <= layer <= model.num_layers or not 1 <= count <= model.num_tokens:
        raise UserError(
            f"--n-layer is {layer} and --num-code {count}; this generator has {model.num_layers} blocks and "
            f"{model.num_tokens} codes"
        )

    def read(images: Tensor) -> Tensor:
        codes = tokenizer.encode(images)[:, :count]
        hidden_class = torch.full((len(codes),), model.num_classes, device=codes.device)
        return model.features(codes, hidden_class, layer).float().mean(dim=1)

    return Features(read, model.width)


def _encoder_tokens(tokenizer: Tokenizer, images: Tensor, count: int) -> Tensor:
    encoder = tokenizer.encoder
    if hasattr(encoder, "tokens"):
        return encoder.tokens(images)[:, :count]
    if not hasattr(encoder, "transformer"):
        raise UserError(f"encoder {tokenizer.config.encoder['name']!r} has no transformer; probe it with --fix-dim")
    return encoder.transformer.features(encoder.cnn(images))[:, :count]


def _projected_tokens(tokenizer: Tokenizer, images: Tensor, count: int) -> Tensor:
    encoded = tokenizer.encoder(images)
    latents = encoded[0] if isinstance(encoded, tuple) else encoded
    return latents.flatten(2).transpose(1, 2)[:, :count]


def _decoder_stream(tokenizer: Tokenizer, images: Tensor, count: int) -> Tensor:
    latents, _ = tokenizer.latents(images)
    vectors = tokenizer.quantizer(latents).vectors
    view = tokenizer.decode_vectors(vectors, count if tokenizer.is_1d else None)
    if view.features is None or view.features.inner is None:
        raise UserError("this tokenizer's decoder has no semantic head to read at; probe its encoder instead")
    return view.features.inner


@torch.no_grad()
def _width(read: Callable[[Tensor], Tensor], tokenizer: Tokenizer) -> int:
    device = next(tokenizer.parameters()).device
    return read(torch.zeros(1, 3, tokenizer.image_size, tokenizer.image_size, device=device)).shape[1]
