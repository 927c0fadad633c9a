"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["psnr"]


def psnr(images: Tensor, references: Tensor, data_range: float) -> Tensor:
    """PSNR of each image in dB: 10 log10(data_range^2 / mean squared error), infinite for equal images.

    Args:
        images, references: (B, ...) of equal shape, any numeric type.
        data_range: largest minus smallest possible value: 255 for pixels, 2 for images in [-1,1].

    Returns: (B,) float64.
    """
    error = (images.double() - references.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error)
