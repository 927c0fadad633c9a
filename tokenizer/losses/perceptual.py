"""Perceptual losses: distances in the features of a frozen network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.meta import on_meta
from common.networks.efficientnet_lite import EfficientNetLite
from common.networks.lpips import LPIPS
from tokenizer.losses.pixel import ReconstructionLoss, WeightConfig
from tokenizer.teachers import IMAGENET

CONVNEXT_FILE = "convnext_small-0c510722.pth"
CONVNEXT_URL = f"https://download.pytorch.org/models/{CONVNEXT_FILE}"
CONVNEXT_SIZE = 224


class LpipsLoss(ReconstructionLoss):
    """LPIPS-VGG (Zhang et al. 2018), mean over the batch."""

    @dataclass
    class Config(WeightConfig):
        vgg_path: str | None = opt(None, "torchvision's vgg16-397923af.pth; null = torch's hub cache")

    def __init__(self, config: Config):
        super().__init__(config)
        self.net = LPIPS(LPIPS.Config(vgg_path=config.vgg_path))

    def features(self, images: Tensor) -> list[Tensor]:
        return self.net.features(images)

    def distance(self, features: list[Tensor], target: list[Tensor]) -> Tensor:
        return self.net.distance(features, target).mean()


class ConvNextLoss(ReconstructionLoss):
    """Mean squared difference of the 1,000 ImageNet logits of ConvNeXt-S, of images resized to 224 pixels.

    Source: TiTok's perceptual loss beside LPIPS (weight 0.1 there), which NesTok trains with, too.
    """

    @dataclass
    class Config(WeightConfig):
        path: str | None = opt(None, f"torchvision's {CONVNEXT_FILE}; null = torch's hub cache")

    def __init__(self, config: Config):
        """Raises: UserError when the weights are not there."""
        super().__init__(config)
        from torchvision.models import convnext_small

        self.net = convnext_small().requires_grad_(False)
        self.eval()
        if on_meta():
            return
        path = Path(config.path or Path(torch.hub.get_dir()) / "checkpoints" / CONVNEXT_FILE)
        if not path.is_file():
            raise UserError(
                f"the ConvNeXt perceptual loss needs {str(path)!r}, which does not exist: "
                f"curl -L --create-dirs -o {path} {CONVNEXT_URL}; or use losses.perceptual.name=efficientnet_lite0"
            )
        self.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))

    def features(self, images: Tensor) -> Tensor:
        """ImageNet logits (B,1000)."""
        mean, deviation = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        shown = F.interpolate(images, (CONVNEXT_SIZE, CONVNEXT_SIZE), mode="bilinear", antialias=True)
        return self.net(((shown + 1) / 2 - mean) / deviation)

    def distance(self, features: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(features.float(), target.float())


class EfficientNetPerceptual(ReconstructionLoss):
    """LPIPS without learned heads on EfficientNet-Lite0, whose weights come with a package and need no download."""

    @dataclass
    class Config(WeightConfig):
        strides: list[int] = opt([2, 4, 8], "strides of the feature maps compared; fewer and smaller maps are cheaper")
        size: int | None = opt(None, "side that images are resized to first, pixels; null = not resized")

    def __init__(self, config: Config):
        super().__init__(config)
        self.strides = config.strides
        self.net = EfficientNetLite("lite0", config.size)

    def features(self, images: Tensor) -> list[Tensor]:
        maps = self.net.feature_maps(images, self.strides)
        return [maps[stride] for stride in self.strides]

    def distance(self, features: list[Tensor], target: list[Tensor]) -> Tensor:
        made, real = ([F.normalize(x.float(), dim=1) for x in maps] for maps in (features, target))
        return sum((a - b).square().sum(dim=1).mean() for a, b in zip(made, real, strict=True)) / len(self.strides)
