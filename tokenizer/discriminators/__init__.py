"""Discriminators: images (B,3,H,W) -> logits of any shape, higher = real."""

from tokenizer.discriminators.dino import DinoDiscriminator
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.discriminators.stylegan import StyleGanDiscriminator

DISCRIMINATORS = {"patchgan": PatchGan, "dino": DinoDiscriminator, "stylegan": StyleGanDiscriminator}
