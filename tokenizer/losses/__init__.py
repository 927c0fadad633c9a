"""Losses between images and a reconstruction. `loss(recon, images) -> scalar`, `weight` from the config."""

from tokenizer.losses.perceptual import ConvNextLoss, EfficientNetPerceptual, LpipsLoss
from tokenizer.losses.pixel import L1, L2

LOSSES = {
    "l1": L1, "l2": L2, "lpips": LpipsLoss, "convnext_small": ConvNextLoss,
    "efficientnet_lite0": EfficientNetPerceptual,
}  # fmt: skip
