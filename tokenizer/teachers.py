"""Frozen teachers: images (B,3,H,W) in [-1,1] -> patch features (B,G*G,width) on the tokenizer's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from common.networks.efficientnet_lite import EfficientNetLite
from common.numerics import to_device
from tokenizer.layers.vit import Vit, VitConfig
from tokenizer.pretrained import load_timm

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def prepare(images: Tensor, size: int, statistics: Sequence[Sequence[float]], resize_first: bool) -> Tensor:
    """images in [-1,1] -> a teacher's input: scaled to [0,1], normalised by (mean, deviation), bicubic to `size`.

    With `resize_first` False, images are normalised before they are resized, which gives slightly other values.
    Source: GigaTok.
    """
    mean, deviation = (
        to_device(torch.tensor(values, dtype=images.dtype, device="cpu"), images.device).view(1, 3, 1, 1)
        for values in statistics
    )
    x = (images + 1) / 2
    if not resize_first:
        x = (x - mean) / deviation
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False)
    return (x - mean) / deviation if resize_first else x


@dataclass
class TimmConfig:
    model: str = opt("", "timm model name; empty = the teacher's own")
    weights: str | None = opt(None, "local weights file; null = timm's cache")


class Teacher(nn.Module):
    """`tokens(images)`: features (B,prefix+G*G,width), the first `prefix` of which belong to no patch."""

    prefix = 0
    untrained = False
    """True if it brings no weights of its own: they come with the tokenizer's checkpoint, or from `backbone`."""

    def tokens(self, images: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no tokens")

    def forward(self, images: Tensor) -> Tensor:
        """The patches' features (B,G*G,width)."""
        return self.tokens(images)[:, self.prefix :]

    def summary(self, images: Tensor) -> Tensor:
        """The class token's feature (B,width), or the mean of the patches' where there is none."""
        tokens = self.tokens(images)
        return tokens[:, 0] if self.prefix else tokens.mean(dim=1)


class TimmTeacher(Teacher):
    """A ViT of timm's after the last norm.

    timm resamples the position table to the grid (bicubic, antialiased), as the papers do.
    """

    Config = TimmConfig
    model = ""
    patch = 14
    statistics = IMAGENET
    resize_first = True

    def __init__(self, config: TimmConfig, grid: int, image_size: int):
        super().__init__()
        self.size = self.patch * grid
        flags = "pass the teacher's weights=FILE, or use the embedded stand-in teacher.name=efficientnet_lite0"
        self.net = load_timm(config.model or self.model, config.weights, flags, img_size=self.size)
        self.prefix = self.net.num_prefix_tokens
        self.net.eval().requires_grad_(False)

    def tokens(self, images: Tensor) -> Tensor:
        return self.net.forward_features(prepare(images, self.size, self.statistics, self.resize_first))


class DinoV2(TimmTeacher):
    """DINOv2 ViT-B/14: GigaTok's and ReTok's teacher."""

    model = "vit_base_patch14_dinov2.lvd142m"
    resize_first = False


class ClipDfn(TimmTeacher):
    """CLIP ViT-L/14 trained on DFN-2B."""

    model = "vit_large_patch14_clip_224.dfn2b"
    statistics = CLIP


class ClipOpenAi(TimmTeacher):
    """CLIP ViT-B/16 of OpenAI: RobusTok's detail guide."""

    model = "vit_base_patch16_clip_224.openai"
    patch = 16
    statistics = CLIP


class SigLip(TimmTeacher):
    """SigLIP SoViT-400m/14."""

    model = "vit_so400m_patch14_siglip_224.webli"
    statistics = HALF


class DinoVitTeacher(Teacher):
    """DINOv2 cut to the tokenizer's own patches, as RobusTok keeps it inside its checkpoints.

    It starts untrained: its weights come with the tokenizer's, or from `backbone`.
    """

    prefix = 1
    untrained = True

    @dataclass
    class Config(VitConfig):
        pass

    def __init__(self, config: Config, grid: int, image_size: int):
        super().__init__()
        if image_size != grid * config.patch:
            raise UserError(f"teacher.patch={config.patch} x grid {grid} is not image_size={image_size}; change it")
        self.size = image_size
        self.net = Vit(config, grid)
        self.requires_grad_(False)

    def tokens(self, images: Tensor) -> Tensor:
        return self.net(prepare(images, self.size, IMAGENET, resize_first=False))


class EfficientNetTeacher(Teacher):
    """EfficientNet-Lite0 features at the stride that matches the grid: the embedded stand-in for DINOv2."""

    @dataclass
    class Config:
        stride: int = opt(16, "which of the network's maps: 8 (40 wide), 16 (112 wide), 32 (320 wide)")

    def __init__(self, config: Config, grid: int, image_size: int):
        super().__init__()
        self.stride, self.grid = config.stride, grid
        self.net = EfficientNetLite("lite0")

    def tokens(self, images: Tensor) -> Tensor:
        features = self.net.feature_maps(images, [self.stride])[self.stride]
        if features.shape[-1] != self.grid:
            features = F.interpolate(features, (self.grid, self.grid), mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2)


TEACHERS = {
    "dinov2_vitb14": DinoV2,
    "clip_dfn_vitl14": ClipDfn,
    "clip_openai_vitb16": ClipOpenAi,
    "siglip_so400m14": SigLip,
    "dino_vit": DinoVitTeacher,
    "efficientnet_lite0": EfficientNetTeacher,
}
