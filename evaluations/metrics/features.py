"""Feature extractors of the distribution metrics, and the pass that applies one to many images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from common.errors import UserError
from common.images import to_pixels
from common.networks.efficientnet_lite import EfficientNetLite
from evaluations.metrics.inception import InceptionGraph
from tokenizer.pretrained import load_timm
from tokenizer.teachers import CLIP, IMAGENET

__all__ = ["ClipL14", "DinoV2L14", "EfficientNetLite2", "Extractor", "Features", "InceptionAdm", "extract"]


WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
"""Names of the file with the weights in a repository of timm's."""


@dataclass(frozen=True)
class Features:
    """`pooled` (N,D) float32 and `probabilities` (N,K) float32 of N images; K = 0 without classes."""

    pooled: np.ndarray
    probabilities: np.ndarray


class Extractor(Protocol):
    """A frozen network: images (B,3,H,W) in [-1,1] -> pooled features (B,D) and class logits (B,K)."""

    name: str
    network: nn.Module | InceptionGraph

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


class EfficientNetLite2:
    """The embedded extractor: 1,280 features, 1,000 ImageNet classes.

    Images are resized to 96 pixels. On the embedded photographs (64x64 crops, 13 classes) a linear classifier fitted to
    the features of 1,300 training crops named 96.3% of 520 held-out crops right at 64 pixels, 98.7% at 96 and 98.5% at
    128, at 2.1, 4.7 and 8.0 ms an image on one busy core.
    """

    name = "efficientnet_lite2"
    size = 96

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config | None = None, device: torch.device | str = "cpu") -> None:
        self.network = EfficientNetLite("lite2", self.size).to(device)
        self.device = torch.device(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.network.pooled(images.to(self.device))
        return pooled, self.network.classifier(pooled)


class InceptionAdm:
    """`pool_3` of the Inception graph that the ADM evaluator uses: 2,048 features of images rounded to 8 bits."""

    name = "inception"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.network, self.device = InceptionGraph(device=device), torch.device(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network.features(torch.from_numpy(to_pixels(images)))
        return found.pool, found.logits


def _pretrained(model: str, **options: Any) -> nn.Module:
    """timm's model with its trained weights. Offline, missing weights are noticed before the network is built.

    Raises: UserError where the weights are missing.
    """
    import timm

    otherwise = "measure the embedded distance 'fd_efficientnet_lite2'"
    repository = timm.get_pretrained_cfg(model).hf_hub_id
    cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in WEIGHTS)
    if constants.HF_HUB_OFFLINE and not cached:
        raise UserError(f"the weights of {model!r} are not in the cache: hf download {repository}; or {otherwise}")
    return load_timm(model, None, otherwise, **options)


class _TimmVit:
    """A ViT from timm's cache. Images are resized as Pillow does (bicubic, antialiased)."""

    name = model = ""
    size = 0
    statistics = IMAGENET

    def __init__(self, device: torch.device | str = "cpu", **options: Any) -> None:
        self.network = _pretrained(self.model, **options).eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in self.statistics)
        x = images.to(self.device)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        pooled = self.pooled(((x + 1) / 2 - mean) / deviation)
        return pooled, pooled[:, :0]

    def pooled(self, x: Tensor) -> Tensor:
        return self.network(x)


class DinoV2L14(_TimmVit):
    """The class token of DINOv2 ViT-L/14 after the last norm at 224 pixels: 1,024 features.

    timm would antialias the position table; here it is resampled as in DINOv2's own code.
    Source: Stein et al., Exposing flaws of generative model evaluation metrics (2023), FD-DINOv2.
    """

    name, model, size = "dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m", 224

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device=device)
        table = self.network.pos_embed.data
        self.network.set_input_size(img_size=self.size)
        self.network.pos_embed.data = resampled_positions(table, self.size // 14)

    def pooled(self, x: Tensor) -> Tensor:
        return self.network.forward_features(x)[:, 0]


def resampled_positions(table: Tensor, grid: int) -> Tensor:
    """DINOv2's position table (1,1+S*S,D), whose first row is the class token's, for a grid of other size."""
    side = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].unflatten(1, (side, side)).movedim(3, 1)
    scale = (grid + 0.1) / side  # the offset is DINOv2's
    square = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((table[:, :1], square.flatten(2).mT), dim=1)


class ClipL14(_TimmVit):
    """The image embedding of OpenAI's CLIP ViT-L/14 at 336 pixels: 768 features. Source: Jayasumana et al. (2024)."""

    name, model, size = "clip_vitl14_336", "vit_large_patch14_clip_quickgelu_336.openai", 336
    statistics = CLIP

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__(device=device, num_classes=768)


@torch.inference_mode()
def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Features:
    """Features of all images in `batches` (each (B,3,H,W) in [-1,1]), in order."""
    pooled, probabilities = [], []
    for images in batches:
        features, logits = extractor(images)
        pooled.append(features.float().cpu().numpy())
        probabilities.append(logits.float().softmax(dim=1).cpu().numpy())
    if not pooled:
        raise ValueError("got no images to extract features from")
    return Features(np.concatenate(pooled), np.concatenate(probabilities))
