"""Quantizers: latents (B,e,...) -> nearest code vectors and what training needs of the choice."""

from tokenizer.quantizers.vq import VectorQuantizer

QUANTIZERS = {"vq": VectorQuantizer}
