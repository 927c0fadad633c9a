"""Quantizers: latents (B,e,...) -> vectors, their codes and what training needs of the choice."""

from tokenizer.quantizers.fsq import FiniteScalarQuantizer
from tokenizer.quantizers.ibq import IndexBackpropagationQuantizer
from tokenizer.quantizers.kl import DiagonalGaussian
from tokenizer.quantizers.lfq import LookupFreeQuantizer
from tokenizer.quantizers.multi_scale import BinaryMultiScaleQuantizer, MultiScaleQuantizer
from tokenizer.quantizers.product import ProductQuantizer
from tokenizer.quantizers.vq import VectorQuantizer
from tokenizer.quantizers.vq_hits import HitCountQuantizer

QUANTIZERS = {
    "vq": VectorQuantizer, "vq_hits": HitCountQuantizer, "fsq": FiniteScalarQuantizer, "lfq": LookupFreeQuantizer,
    "ibq": IndexBackpropagationQuantizer, "multi_scale": MultiScaleQuantizer,
    "binary_multi_scale": BinaryMultiScaleQuantizer, "product": ProductQuantizer, "kl": DiagonalGaussian,
}  # fmt: skip
