"""Decoders: latents after `post_quant_conv` -> images (B,3,H,W), unclamped, nominal range [-1,1]."""

from tokenizer.decoders.cnn import CnnDecoder
from tokenizer.decoders.dino_vit import DinoVitDecoder
from tokenizer.decoders.hybrid_1d import Hybrid1dDecoder
from tokenizer.decoders.hybrid_2d import Hybrid2dDecoder
from tokenizer.decoders.maskgit import MaskgitDecoder
from tokenizer.decoders.titok import TitokDecoder

DECODERS = {
    "cnn": CnnDecoder,
    "hybrid_1d": Hybrid1dDecoder,
    "hybrid_2d": Hybrid2dDecoder,
    "dino_vit": DinoVitDecoder,
    "titok": TitokDecoder,
    "maskgit": MaskgitDecoder,
}
