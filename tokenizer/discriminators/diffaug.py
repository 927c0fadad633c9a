"""Differentiable augmentation of a discriminator's input, for real and generated images.

The originals can also blur images at first; their configs fade the blur out within one step, and it is not built here.
Source: Zhao et al. 2020 (arXiv 2006.10738), as the DINO discriminator of GigaTok and RobusTok uses it.
"""

from __future__ import annotations

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
