"""Encoders: images (B,3,H,W) -> latents (B,C,1,N) or (B,C,H',W'), before `quant_conv`."""

from tokenizer.encoders.cnn import CnnEncoder
from tokenizer.encoders.dino_vit import DinoVitEncoder
from tokenizer.encoders.hybrid_1d import Hybrid1dEncoder
from tokenizer.encoders.hybrid_2d import Hybrid2dEncoder
from tokenizer.encoders.maskgit import MaskgitEncoder
from tokenizer.encoders.titok import TitokEncoder

ENCODERS = {
    "cnn": CnnEncoder,
    "hybrid_1d": Hybrid1dEncoder,
    "hybrid_2d": Hybrid2dEncoder,
    "dino_vit": DinoVitEncoder,
    "titok": TitokEncoder,
    "maskgit": MaskgitEncoder,
}
