"""Perceptual losses: distances in the features of a frozen network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import opt
from common.errors import UserError
from common.meta import on_meta
from common.networks.efficientnet_lite import NUM_FEATURES, EfficientNetLite
from common.networks.lpips import LPIPS
from tokenizer.losses.frechet import FrechetPull
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

    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return self.net(recon, target).mean()


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

    def _logits(self, images: Tensor) -> Tensor:
        mean, deviation = (images.new_tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        shown = F.interpolate(images, (CONVNEXT_SIZE, CONVNEXT_SIZE), mode="bilinear", antialias=True)
        return self.net(((shown + 1) / 2 - mean) / deviation)

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        return self._logits(images)

    def distance(self, recon: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self._logits(recon).float(), target.float())


class EfficientNetPerceptual(ReconstructionLoss):
    """LPIPS's recipe without learned heads on EfficientNet-Lite0, the embedded stand-in.

    From the same pass through the network comes, where it is asked for, the Frechet distance between the features of
    all reconstructions and those of all images.
    """

    @dataclass
    class Config(WeightConfig):
        strides: list[int] = opt([2, 4, 8], "maps compared; fewer and smaller are cheaper")
        size: int | None = opt(None, "side that images are resized to first, pixels; null = as they are")
        frechet: float = opt(0.0, "weight of the Frechet distance, of reconstructions from all tokens; 0 = none")

    def __init__(self, config: Config):
        super().__init__(config)
        self.strides, self.frechet = config.strides, config.frechet
        self.net = EfficientNetLite("lite0", config.size)
        self.pull = FrechetPull(NUM_FEATURES) if config.frechet else None

    def _features(self, images: Tensor, pooled: bool) -> tuple[list[Tensor], Tensor | None]:
        maps = self.net.feature_maps(images, {*self.strides, 32} if pooled else self.strides)
        compared = [F.normalize(maps[stride], dim=1) for stride in self.strides]
        return compared, self.net.pool(maps[32]).float() if pooled else None

    @torch.no_grad()
    def target(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        return self._features(images, self.pull is not None)

    def distance(self, recon: Tensor, target: tuple[list[Tensor], Tensor | None]) -> Tensor:
        return self._distance(self._features(recon, pooled=False)[0], target[0])

    def _distance(self, features: list[Tensor], target: list[Tensor]) -> Tensor:
        pairs = zip(features, target, strict=True)
        return sum((a - b).float().square().sum(dim=1).mean() for a, b in pairs) / len(self.strides)

    def terms(self, recon: Tensor, target: tuple[list[Tensor], Tensor | None], whole: bool) -> dict[str, Tensor]:
        if self.pull is None or not whole:
            return super().terms(recon, target, whole)
        features, pooled = self._features(recon, pooled=True)
        return {"": self.weight * self._distance(features, target[0]), **self._pulled(pooled, target)}

    def unpaired_terms(self, images: Tensor, target: tuple[list[Tensor], Tensor | None]) -> dict[str, Tensor]:
        return self._pulled(self.net.pooled(images).float(), target) if self.pull else {}

    def _pulled(self, pooled: Tensor, target: tuple[list[Tensor], Tensor | None]) -> dict[str, Tensor]:
        self.pull.watch(target[1], pooled)
        return {"_frechet": self.frechet * self.pull(pooled)}

    def state(self) -> dict[str, Any]:
        return self.pull.state_dict() if self.pull else {}

    def load(self, state: dict[str, Any]) -> None:
        if self.pull:
            self.pull.load_state_dict(state)
