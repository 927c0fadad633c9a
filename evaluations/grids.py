"""Pictures of pictures: rows of images side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["grid"]


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = 2) -> np.ndarray:
    """Rows of uint8 images (H,W,3) of one size -> one white-backed uint8 image. Rows may differ in length."""
    height, width, _ = rows[0][0].shape
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = r * (height + gap), c * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas
