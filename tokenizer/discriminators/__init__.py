"""Discriminators: images (B,3,H,W) -> logits of any shape, higher = real."""

from tokenizer.discriminators.dino import DinoDiscriminator
from tokenizer.discriminators.efficientnet import EfficientNetDiscriminator
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.discriminators.stylegan import StyleGanDiscriminator

DISCRIMINATORS = {
    "patchgan": PatchGan,
    "dino": DinoDiscriminator,
    "efficientnet_lite0": EfficientNetDiscriminator,
    "stylegan": StyleGanDiscriminator,
}
