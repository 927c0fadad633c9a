"""LPIPS: distance of images in the features of VGG16, weighted by learned heads.

Steps: (x - shift) / scale; features after relu1_2, 2_2, 3_3, 4_3, 5_3; each divided by its channel norm; squared
difference, weighted by a 1x1 head, mean over positions, summed over the five layers. The heads' dropout of the original
is left out: it is inactive in evaluation and only noise in training.
Source: Zhang et al., The unreasonable effectiveness of deep features as a perceptual metric (2018).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import opt
from common.errors import UserError
from common.meta import on_meta

__all__ = ["LPIPS", "LPIPSNetwork"]

SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""torchvision's layer numbers of the convolutions in each of the five stages."""

VGG_FILE = "vgg16-397923af.pth"
VGG_URL = f"https://download.pytorch.org/models/{VGG_FILE}"


class LPIPSNetwork(nn.Module):
    """The network alone; state-dict names are the original's (`net.slice1.0.weight`, ..., `lin4.model.1.weight`).

    Args:
        channels: width of each of the five stages.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512, 512)) -> None:
        super().__init__()
        self.scaling_layer = nn.Module()
        self.scaling_layer.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None])
        self.scaling_layer.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None])
        self.net = nn.Module()
        inputs = 3
        for stage, (layers, outputs) in enumerate(zip(SLICES, channels, strict=True)):
            convolutions = nn.ModuleDict()
            for layer in layers:
                convolutions[str(layer)] = nn.Conv2d(inputs, outputs, 3, padding=1)
                inputs = outputs
            self.net.add_module(f"slice{stage + 1}", convolutions)
            head = nn.Module()
            head.model = nn.ModuleDict({"1": nn.Conv2d(outputs, 1, 1, bias=False)})
            self.add_module(f"lin{stage}", head)

    def features(self, images: Tensor) -> list[Tensor]:
        """The five feature maps of images (B,3,H,W) in [-1,1]."""
        x = (images - self.scaling_layer.shift) / self.scaling_layer.scale
        maps = []
        for stage in range(len(SLICES)):
            if stage > 0:
                x = F.max_pool2d(x, 2)
            for convolution in self.net.get_submodule(f"slice{stage + 1}").values():
                x = F.relu(convolution(x))
            maps.append(x)
        return maps

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distance of each pair of images (B,3,H,W) in [-1,1]: (B,), 0 for equal images."""
        return self.distance(self.features(images), self.features(references))

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Distance (B,) of the feature maps of two batches of images, computed in fp32 outside of autocast."""
        total = features[0].new_zeros(len(features[0]), dtype=torch.float32)
        for stage, (a, b) in enumerate(zip(features, others, strict=True)):
            head = self.get_submodule(f"lin{stage}").model["1"]
            total = total + head((_unit(a.float()) - _unit(b.float())).square()).mean(dim=(1, 2, 3))
        return total


class LPIPS(LPIPSNetwork):
    """LPIPS-VGG with the released weights, frozen; gradients flow to the images."""

    name = "lpips_vgg"

    @dataclass
    class Config:
        vgg_path: str | None = opt(None, f"torchvision's {VGG_FILE}; default: torch's hub cache")
        heads_path: str | None = opt(None, "vgg.pth of LPIPS 0.1; default: inside the lpips package")

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.eval()
        if on_meta():
            return
        config = config or self.Config()
        trunk = _load(_vgg_file(config.vgg_path))
        heads = _load(_heads_file(config.heads_path))
        weights = {f"scaling_layer.{name}": buffer for name, buffer in self.scaling_layer.named_buffers()}
        for stage, layers in enumerate(SLICES):
            for layer in layers:
                for kind in ("weight", "bias"):
                    weights[f"net.slice{stage + 1}.{layer}.{kind}"] = trunk[f"features.{layer}.{kind}"]
        self.load_state_dict({**weights, **heads})


def _unit(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def _load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")


def _vgg_file(path: str | None) -> Path:
    file = Path(path) if path else Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    if not file.is_file():
        raise UserError(
            f"LPIPS needs the VGG16 weights {str(file)!r}, which do not exist: "
            f"curl -L --create-dirs -o {file} {VGG_URL}; or use the embedded distance 'perceptual_efficientnet_lite0'"
        )
    return file


def _heads_file(path: str | None) -> Path:
    if path:
        file = Path(path)
    else:
        spec = importlib.util.find_spec("lpips")
        places = list(spec.submodule_search_locations or []) if spec else []
        file = Path(places[0] if places else "lpips") / "weights" / "v0.1" / "vgg.pth"
    if not file.is_file():
        raise UserError(
            f"LPIPS needs its linear heads {str(file)!r}, which do not exist: pip install --no-deps lpips==0.1.4; "
            "or use the embedded distance 'perceptual_efficientnet_lite0'"
        )
    return file
