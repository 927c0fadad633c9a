"""The noise that codes are drawn with."""

from __future__ import annotations

import torch

from autoregressive.generate import gumbel_noise


def test_neighbouring_images_share_no_noise_at_neighbouring_places() -> None:
    """A key that only adds image and place up gives image i at place p what image i + 1 has at p - 1."""
    ids = torch.arange(50)
    for seed in (0, 1):
        for place in (1, 5, 100):
            noise = gumbel_noise(64, seed, ids, place)
            for shift in (-2, -1, 1, 2):
                other = gumbel_noise(64, seed, ids - shift, place + shift)
                assert not torch.isclose(noise, other).all(dim=1).any()
                assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1].item()) < 0.08
            other = gumbel_noise(64, seed + 1, ids, place - 1)
            assert abs(torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))[0, 1].item()) < 0.08
