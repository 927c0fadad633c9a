"""Nearest training images and near copies."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from studies.drawings import DrawingsConfig, _Job, nearest

LEVELS = 32
"""Grey levels per code of the coarse tokenizer below."""


def pictures(count: int, seed: int) -> torch.Tensor:
    """Coarse random pictures, uint8 (N,16,16,3)."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 4, 4, 3), dtype=torch.uint8, generator=generator)
    return small.repeat_interleave(4, 1).repeat_interleave(4, 2)


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (N,16,16,3) -> codes (N,48): every block's levels, coarsely."""
    return pixels[:, ::4, ::4].permute(0, 3, 1, 2).flatten(1).long() // LEVELS


def decode(codes: torch.Tensor) -> np.ndarray:
    small = (codes * LEVELS + LEVELS // 2).to(torch.uint8).view(-1, 3, 4, 4).permute(0, 2, 3, 1)
    return small.repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()


def test_the_nearest_is_found_and_a_copy_has_the_distance_zero() -> None:
    known = pictures(200, 0)
    distances, index = nearest(known[[3, 1]], known)
    assert index.tolist() == [3, 1] and distances.tolist() == [0, 0]


def test_the_distance_is_in_grey_levels() -> None:
    known, images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.full((1, 8, 8, 3), 10, dtype=torch.uint8)
    assert np.allclose(nearest(images, known)[0], 10)


@pytest.mark.parametrize(("mirrored", "seed", "expected"), [(False, None, 1.0), (True, None, 1.0), (False, 9, 0.0)])
def test_a_generator_that_learned_its_codes_by_heart_is_found(
    mirrored: bool, seed: int | None, expected: float
) -> None:
    """Although nothing that is decoded from codes is near to the original pictures."""
    train, held_out = pictures(40, 0), pictures(30, 1)
    drawn = train if seed is None else pictures(40, seed)
    drawn = drawn.flip(2) if mirrored else drawn

    def codes(labels: torch.Tensor, ids: torch.Tensor, *_: object) -> torch.Tensor:
        return encode(drawn[ids])

    sampler = SimpleNamespace(codes=codes, pixels=decode, inference=SimpleNamespace(encode=encode))
    options = DrawingsConfig(gpt_ckpt="", vq_ckpt="", train_path="", val_path="", out="", num_tokens=48)
    job = _Job(options, sampler, torch.device("cpu"), train, held_out)  # type: ignore[arg-type]
    labels = np.arange(40) % 2
    assert job.measure(labels, labels[:30], labels)["near_copies"] == pytest.approx(expected, abs=0.1)
    assert nearest(job.samples, train)[0].min() > 5
