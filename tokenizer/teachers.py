"""Frozen teachers: images (B,3,H,W) in [-1,1] -> patch features (B,G*G,width) on the tokenizer's grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from evaluations.metrics.embedded import EfficientNetLite


class DinoV2(nn.Module):
    """DINOv2 ViT patch tokens after the last norm, class token dropped. Source: GigaTok; spec tokenizer 4."""

    @dataclass
    class Config:
        model: str = opt("vit_base_patch14_dinov2.lvd142m", "timm model name")
        weights: str | None = opt(None, "local weights file; null = timm's cache")

    def __init__(self, config: Config, grid: int, image_size: int):
        super().__init__()
        import timm

        self.size = 14 * grid
        try:
            local = {"pretrained_cfg_overlay": {"file": config.weights}} if config.weights else {}
            self.net = timm.create_model(config.model, pretrained=True, img_size=self.size, num_classes=0, **local)
        except Exception as error:  # timm and the hub raise many kinds for a missing file
            raise UserError(
                f"teacher {config.model!r} is not on this machine ({type(error).__name__}); get it with "
                f"'hf download timm/{config.model}' or pass regularizers.semantic.teacher.weights=FILE, or use the "
                "embedded stand-in regularizers.semantic.teacher.name=efficientnet_lite0"
            ) from error
        self.net.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        normalised = ((images + 1) / 2 - self.mean) / self.std
        resized = F.interpolate(normalised, (self.size, self.size), mode="bicubic", align_corners=False)
        return self.net.forward_features(resized)[:, self.net.num_prefix_tokens :]


class EfficientNetTeacher(nn.Module):
    """EfficientNet-Lite0 features at the stride that matches the grid: the embedded stand-in for DINOv2."""

    @dataclass
    class Config:
        stride: int = opt(16, "which of the network's maps: 8 (40 wide), 16 (112 wide), 32 (320 wide)")

    def __init__(self, config: Config, grid: int, image_size: int):
        super().__init__()
        self.stride, self.grid = config.stride, grid
        self.net = EfficientNetLite("lite0")

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.feature_maps(images, [self.stride])[self.stride]
        if features.shape[-1] != self.grid:
            features = F.interpolate(features, (self.grid, self.grid), mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2)


TEACHERS = {"dinov2_vitb14": DinoV2, "efficientnet_lite0": EfficientNetTeacher}
