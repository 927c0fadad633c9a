"""Which codes a tokenizer gives to images, as a hash: what code stores, generators and pairs must agree on."""

from __future__ import annotations

import hashlib

from common.dist import whole
from tokenizer.model import Tokenizer

__all__ = ["codes_fingerprint"]


def codes_fingerprint(tokenizer: Tokenizer) -> str:
    """A short hash of all that decides about codes: encoder, quant_conv, codebook.

    Training the decoder does not change it, so pairs stay valid while a tokenizer is post-trained, and afterwards.
    Buffers of the quantizer are left out: they record the use of its codes.
    """
    tensors = {f"encoder.{key}": value for key, value in tokenizer.encoder.state_dict().items()}
    tensors |= {f"quant_conv.{key}": value for key, value in tokenizer.quant_conv.state_dict().items()}
    tensors |= {f"quantizer.{key}": value.detach() for key, value in tokenizer.quantizer.named_parameters()}
    about = (tokenizer.config.encoder["name"], tokenizer.config.quantizer["name"], tokenizer.image_size)
    digest = hashlib.sha256(repr(about).encode())
    for key in sorted(tensors):
        digest.update(key.encode() + whole(tensors[key]).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
