"""Discriminators: images (B,3,H,W) -> logits of any shape, higher = real."""

from tokenizer.discriminators.patchgan import PatchGan

DISCRIMINATORS = {"patchgan": PatchGan}
