"""Nearest training images and near copies."""

from __future__ import annotations

import numpy as np
import torch

from studies.drawings import nearest


def test_a_mirrored_copy_is_found_and_its_distance_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)
    images = torch.stack((train[3].flip(1), train[1]))
    distances, index = nearest(images, train)
    assert index.tolist() == [3, 1]
    assert np.allclose(distances, 0, atol=0.2)


def test_the_distance_is_in_grey_levels() -> None:
    train, images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((1, 8, 8, 3), 10, dtype=torch.uint8)
    assert np.allclose(nearest(images, train)[0], 10)
