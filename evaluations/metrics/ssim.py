"""Structural similarity with a uniform 7x7 window, the form scikit-image computes by default.

Source: Wang et al., Image quality assessment: from error visibility to structural similarity (2004), eq. 13,
with sample (n-1) variances and only windows that lie inside the image, averaged over positions and channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ssim"]

WINDOW = 7
K1, K2 = 0.01, 0.03


def ssim(images: Tensor, references: Tensor, *data_ranges: float) -> Tensor:
    """SSIM of each image under each data range, at most 1; the windows' statistics are computed once for all.

    Args:
        images, references: (B,C,H,W) of equal shape, H and W at least 7.
        data_ranges: largest minus smallest possible value. The papers' scripts pass 2.0 for images in [0,1],
            which reads higher than the true range of 1.0: always state which was used.

    Returns: (len(data_ranges), B) float64.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"got images of {tuple(images.shape[-2:])} pixels; SSIM needs at least {WINDOW}x{WINDOW}")
    x, y = images.double(), references.double()
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x = unbiased * (_window_mean(x * x) - mean_x**2)
    var_y = unbiased * (_window_mean(y * y) - mean_y**2)
    covariance = unbiased * (_window_mean(x * y) - mean_x * mean_y)
    found = []
    for data_range in data_ranges:
        c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (var_x + var_y + c2)
        found.append((luminance * structure).mean(dim=(1, 2, 3)))
    return torch.stack(found)


def _window_mean(x: Tensor) -> Tensor:
    columns = F.avg_pool2d(x, (WINDOW, 1), stride=1)  # then rows: 14 additions a window instead of 49
    return F.avg_pool2d(columns, (1, WINDOW), stride=1)
