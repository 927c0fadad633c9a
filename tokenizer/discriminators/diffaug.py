"""Differentiable augmentation of what a discriminator sees, real and generated alike.

Source: Zhao et al. 2020, as the DINO discriminator of GigaTok and RobusTok uses it; spec robustok 3.3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_UNIFORMS = 7


def augment(images: Tensor, uniforms: Tensor, applied: tuple[bool, bool, bool] = (True, True, True)) -> Tensor:
    """Translation by up to an eighth, colour, a square cutout of a fifth, each if `applied`.

    images (B,3,S,S); uniforms (7,B) in [0,1): shift down, shift right, brightness, saturation, contrast, cutout row
    and column.
    """
    down, right, brightness, saturation, contrast, row, column = uniforms.view(NUM_UNIFORMS, -1, 1, 1, 1)
    x, side = images, images.shape[-1]
    if applied[0]:
        x = _translate(x, down, right, round(side * 0.125))
    if applied[1]:
        x = x + (brightness - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * (2 * saturation) + grey
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * (contrast + 0.5) + mean
    if applied[2]:
        size = round(side * 0.2)
        places = torch.arange(side, device=x.device)
        cut = _inside(places[:, None], row, side, size) & _inside(places[None, :], column, side, size)
        x = x * ~cut
    return x


def _translate(x: Tensor, down: Tensor, right: Tensor, reach: int) -> Tensor:
    """Each image moved by whole pixels, zeros where nothing came from."""
    batch, _, side, _ = x.shape
    padded = F.pad(x, (reach,) * 4)
    offsets = [(u.flatten() * (2 * reach + 1)).floor().long() for u in (down, right)]
    places = torch.arange(side, device=x.device)
    rows = (offsets[0][:, None] + places).view(batch, 1, side, 1)
    columns = (offsets[1][:, None] + places).view(batch, 1, 1, side)
    images = torch.arange(batch, device=x.device).view(-1, 1, 1, 1)
    channels = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    return padded[images, channels, rows, columns]


def _inside(places: Tensor, uniform: Tensor, side: int, size: int) -> Tensor:
    first = (uniform * (side + (1 - size % 2))).floor() - size // 2
    return (places >= first) & (places < first + size)


def blur(images: Tensor, strength: float) -> Tensor:
    """Gaussian-like blur (kernel 2^-(d/sigma)^2) of sigma = sqrt(S/2) * strength, reflected at the borders."""
    sigma = math.sqrt(images.shape[-1] / 2) * strength
    radius = math.floor(3 * sigma)
    if radius < 1:
        return images
    kernel = torch.exp2(-((torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype) / sigma) ** 2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    x = F.pad(images, (radius,) * 4, mode="reflect")
    x = F.conv2d(x, kernel.unsqueeze(2), groups=images.shape[1])
    return F.conv2d(x, kernel.unsqueeze(3), groups=images.shape[1])


def blur_strength(step: int, start: int, fade: int) -> float:
    """1 up to the discriminator's first step `start`, then down to 0 within `fade` + 1 steps."""
    if step < start:
        return 1.0
    strength = 1.0 - min(1.0, (step - start) / (fade + 1))
    return strength if strength > 1e-6 else 0.0
