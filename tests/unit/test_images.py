"""Pixels, files, crops and the .npz writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from common import npz
from common.errors import UserError
from common.images import (
    center_crop,
    from_pixels,
    load_images,
    random_crop,
    read_image,
    save_images,
    to_pixels,
    write_png,
)
from common.npz import NpzWriter
from tests.toys import read_npz


def test_eight_bit_images_survive_the_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    assert np.array_equal(to_pixels(from_pixels(pixels)), pixels.numpy())
    assert to_pixels(torch.tensor([-9.0, 9.0, 0.0]).reshape(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


def test_images_are_loaded_as_a_batch_and_saved_side_by_side(tmp_path: Path) -> None:
    for name, value in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (40, 30), (value,) * 3).save(tmp_path / name)
    images = load_images([tmp_path / "a.png", tmp_path / "b.png"], 16)
    assert images.shape == (2, 3, 16, 16)
    save_images(images, tmp_path / "both.png")
    saved = np.asarray(Image.open(tmp_path / "both.png"))
    assert saved.shape == (16, 32, 3) and saved[0, 0, 0] == 10 and saved[0, -1, 0] == 200


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (65, 900)])
def test_crops_have_the_size_asked_for(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    assert center_crop(image, 64).size == (64, 64)
    assert all(random_crop(image, 64, np.random.default_rng(seed)).size == (64, 64) for seed in range(5))


def test_a_centre_crop_of_the_right_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(center_crop(Image.fromarray(pixels), 64)), pixels)


def test_npz_is_streamed_and_appears_only_when_complete(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    writer = NpzWriter(tmp_path / "x.npz", 5, (4, 6))
    writer.write(pixels[:2])
    assert not (tmp_path / "x.npz").exists()
    writer.write(pixels[2:])
    writer.close()
    assert np.array_equal(read_npz(tmp_path / "x.npz"), pixels)
    short = NpzWriter(tmp_path / "y.npz", 5, (4, 6))
    short.write(pixels[:1])
    with pytest.raises(ValueError, match="1 images written, 5 announced"):
        short.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]


@pytest.mark.parametrize("content", ["missing", "text", "wrong key", "floats"])
def test_a_wrong_npz_ends_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.npz"
    if content == "text":
        path.write_text("no zip")
    elif content == "wrong key":
        np.savez(path, images=np.zeros((1, 2, 2, 3), np.uint8))
    elif content == "floats":
        np.savez(path, np.zeros((1, 2, 2, 3)))
    with pytest.raises(UserError, match=r"x\.npz"):
        npz.header(path)


def test_png_is_exact_and_greys_become_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), pixels)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png")).shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photographs_are_turned_as_their_exif_orientation_says(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x", kind, exif=exif)
    with Image.open(tmp_path / "x") as shown:
        expected = np.asarray(ImageOps.exif_transpose(shown).convert("RGB"))
    assert expected.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
    assert np.array_equal(np.asarray(read_image(tmp_path / "x")), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"])
def test_a_damaged_exif_block_is_ignored(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (8, 6)
