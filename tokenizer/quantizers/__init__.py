"""Quantizers: latents (B,e,...) -> nearest code vectors and what training needs of the choice."""

from tokenizer.quantizers.vq import VectorQuantizer
from tokenizer.quantizers.vq_hits import HitCountQuantizer

QUANTIZERS = {"vq": VectorQuantizer, "vq_hits": HitCountQuantizer}
