"""The identity of a tokenizer's codes: recorded with what is made of them, and asserted while a decoder is trained."""

from __future__ import annotations

import hashlib

from torch import Tensor, nn

from common.dist import whole
from common.errors import UserError
from tokenizer.model import Tokenizer


def codes_fingerprint(tokenizer: Tokenizer) -> str:
    """A short hash of the weights that codes depend on: encoder, quant_conv, codebook.

    Training the decoder does not change it, so codes, pairs and generators stay valid for a tokenizer whose decoder was
    fine-tuned. Buffers of the quantizer are left out: they count the use of its codes.
    """
    tensors = {f"encoder.{key}": value for key, value in tokenizer.encoder.state_dict().items()}
    tensors |= {f"quant_conv.{key}": value for key, value in tokenizer.quant_conv.state_dict().items()}
    tensors |= {f"quantizer.{key}": value.detach() for key, value in tokenizer.quantizer.named_parameters()}
    about = (tokenizer.config.encoder["name"], tokenizer.config.quantizer["name"], tokenizer.image_size)
    digest = hashlib.sha256(repr(about).encode())
    for key in sorted(tensors):
        digest.update(key.encode() + whole(tensors[key]).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_codes_of(recorded: str | None, tokenizer: Tokenizer, what: str) -> None:
    """Raises: UserError when `what` records the fingerprint of another tokenizer's codes; None = it records none."""
    if recorded not in (None, codes_fingerprint(tokenizer)):
        raise UserError(
            f"{what} belongs to the codes of another tokenizer; pass the --vq-ckpt that made them, or one whose "
            "decoder alone was trained further"
        )


IMAGES = 8


class FrozenCodes:
    """Asserts that the codes of a run with frozen encoder, `quant_conv` and quantizer do not change.

    The hash of these weights is kept in the run's checkpoints. The codes of a few training images are compared within
    this process only, because another machine may round latents differently. Source: ReTok, decoder fine-tuning.
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
            self.codes = self._encode(tokenizer, sharded)

    def check(self, name: str, tokenizer: Tokenizer, sharded: nn.Module) -> None:
        """Raises: RuntimeError when `tokenizer` (called `name`) gives other codes than at the start."""
        found = codes_fingerprint(tokenizer)
        if found != self.fingerprint:
            raise RuntimeError(f"{name}: the frozen weights have changed, from {self.fingerprint} to {found}")
        if self.codes is not None:
            changed = int((self._encode(tokenizer, sharded) != self.codes).sum())
            if changed:
                raise RuntimeError(f"{name}: {changed} of {self.codes.numel()} codes changed under a frozen encoder")

    def _encode(self, tokenizer: Tokenizer, sharded: nn.Module) -> Tensor:
        from common import parallel  # imports FSDP, which takes a second, and sampling imports this file

        encode = tokenizer.encode_vectors if tokenizer.quantizer.continuous else tokenizer.encode
        with parallel.gathered(sharded, self.precision, self.images.device):
            return encode(self.images)
