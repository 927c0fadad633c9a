"""Checks that decoder training does not change the codes of images."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from common import parallel
from common.dist import whole
from tokenizer.model import Tokenizer


def codes_fingerprint(tokenizer: Tokenizer) -> str:
    """A short hash of the weights that determine codes: encoder, quant_conv, codebook.

    Training the decoder does not change it, so pairs stay valid during and after post-training. Buffers of the
    quantizer are left out: they record the use of its codes.
    """
    tensors = {f"encoder.{key}": value for key, value in tokenizer.encoder.state_dict().items()}
    tensors |= {f"quant_conv.{key}": value for key, value in tokenizer.quant_conv.state_dict().items()}
    tensors |= {f"quantizer.{key}": value.detach() for key, value in tokenizer.quantizer.named_parameters()}
    about = (tokenizer.config.encoder["name"], tokenizer.config.quantizer["name"], tokenizer.image_size)
    digest = hashlib.sha256(repr(about).encode())
    for key in sorted(tensors):
        digest.update(key.encode() + whole(tensors[key]).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


IMAGES = 8


class FrozenCodes:
    """Reference of a run with frozen encoder, `quant_conv` and quantizer.

    It holds the hash of the weights that determine codes, which checkpoints keep, and the codes of a few training
    images under `precision`, which they do not keep: another machine may round latents differently.
    Source: ReTok, decoder fine-tuning.
    """

    def __init__(self, tokenizer: Tokenizer, precision: str = "none") -> None:
        self.precision = precision
        self.fingerprint = codes_fingerprint(tokenizer)
        self.images: Tensor | None = None
        self.codes: Tensor | None = None

    def watch(self, tokenizer: Tokenizer, images: Tensor, sharded: nn.Module) -> None:
        """Record the codes of the first images (B,3,H,W). `sharded`: the argument of `parallel.gathered`."""
        if self.codes is None:
            self.images = images[:IMAGES].clone()
            with parallel.gathered(sharded, self.precision, self.images.device):
                self.codes = tokenizer.encode(self.images)

    def check(self, name: str, tokenizer: Tokenizer, sharded: nn.Module) -> None:
        """Raises: RuntimeError when `tokenizer` (called `name`) gives other codes than at the start."""
        found = codes_fingerprint(tokenizer)
        if found != self.fingerprint:
            raise RuntimeError(f"{name}: the frozen weights have changed, from {self.fingerprint} to {found}")
        if self.codes is not None:
            with parallel.gathered(sharded, self.precision, self.images.device):
                changed = int((tokenizer.encode(self.images) != self.codes).sum())
            if changed:
                raise RuntimeError(f"{name}: {changed} of {self.codes.numel()} codes changed under a frozen encoder")
