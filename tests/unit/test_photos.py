"""The embedded photographs: all there, cut the same every time, training and validation never sharing a pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from studies import photos
from studies.photos import PHOTOS, PhotosConfig

SMALL = PhotosConfig(out="unused", image_size=32, train_per_photo=3, val_per_photo=2)


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_thirteen_photographs_with_names_in_label_order():
    names = [photo.name for photo in PHOTOS]
    assert len(set(names)) == 13
    assert names == sorted(names)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_a_photo_is_installed_and_large_enough_for_several_scales(photo):
    with Image.open(photos.photo_path(photo)) as picture:
        assert photos.largest_crop(picture.size, 256) >= 96


def test_the_folder_is_complete_and_the_same_every_time(tmp_path):
    assert photos.make(replace(SMALL, out=str(tmp_path / "a")))
    assert photos.make(replace(SMALL, out=str(tmp_path / "b")))
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert first == second
    assert len([name for name in first if name.startswith("train/")]) == 13 * 3
    assert len([name for name in first if name.startswith("val/")]) == 13 * 2
    with Image.open(tmp_path / "a/train/cat/00000.png") as crop:
        assert (crop.mode, crop.size) == ("RGB", (32, 32))
    licences = (tmp_path / "a/LICENSES.md").read_text()
    assert all(photo.file in licences for photo in PHOTOS)


def test_another_seed_gives_other_crops():
    one, other = (photos.crops(PHOTOS[0], "train", 1, replace(SMALL, seed=seed))[0] for seed in (0, 1))
    assert one.tobytes() != other.tobytes()


def test_asking_for_more_begins_with_the_same_crops():
    few, many = (photos.crops(PHOTOS[0], "val", count, SMALL) for count in (2, 5))
    assert [crop.tobytes() for crop in few] == [crop.tobytes() for crop in many[:2]]


def test_no_crop_shows_a_pixel_of_the_other_split(tmp_path, monkeypatch):
    """On a picture that is red left of the border and green right of it, no crop has a trace of the other colour."""
    width, height = 403, 200
    left, right = photos.strip("val", width)
    assert (left, right) == (0, photos.strip("train", width)[0])
    noise = np.random.default_rng(0).integers(100, 255, (height, width), dtype=np.uint8)
    two_colours = np.zeros((height, width, 3), np.uint8)
    two_colours[:, :right, 0] = noise[:, :right]
    two_colours[:, right:, 1] = noise[:, right:]
    Image.fromarray(two_colours).save(tmp_path / "picture.png")
    monkeypatch.setattr(photos, "photo_path", lambda photo: tmp_path / "picture.png")
    for split, own, other in (("val", 0, 1), ("train", 1, 0)):
        drawn = np.stack([np.asarray(crop) for crop in photos.crops(PHOTOS[0], split, 200, SMALL)])
        assert drawn[..., own].min() > 0
        assert drawn[..., other].max() == 0


def test_boxes_reach_every_edge_of_their_strip_and_never_beyond():
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        left, right = photos.strip(split, 320)
        boxes = np.array([photos.draw_box(rng, split, (320, 90), (64, 80)) for _ in range(3000)])
        assert (boxes[:, 0].min(), boxes[:, 2].max(), boxes[:, 1].min(), boxes[:, 3].max()) == (left, right, 0, 90)
        assert set(boxes[:, 2] - boxes[:, 0]) == set(range(64, 81))


def test_flat_crops_are_left_out(tmp_path, monkeypatch):
    """Half of this picture is black; every crop that is kept shows some of the other half."""
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[200:] = np.random.default_rng(0).integers(0, 255, (200, 800, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    monkeypatch.setattr(photos, "photo_path", lambda photo: tmp_path / "picture.png")
    drawn = photos.crops(PHOTOS[0], "train", 100, SMALL)
    assert min(np.asarray(crop).std() for crop in drawn) >= photos.FLAT


def test_asked_again_it_does_nothing(tmp_path):
    options = replace(SMALL, out=str(tmp_path / "a"))
    assert photos.make(options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert not photos.make(options)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.png").write_bytes(b"precious")
    with pytest.raises(UserError, match="other files"):
        photos.make(replace(SMALL, out=str(tmp_path / "mine")))
    assert read(tmp_path / "mine") == {"holiday.png": b"precious"}
    photos.make(replace(SMALL, out=str(tmp_path / "a")))
    before = read(tmp_path / "a")
    with pytest.raises(UserError, match="other options"):
        photos.make(replace(SMALL, out=str(tmp_path / "a"), seed=5))
    assert read(tmp_path / "a") == before


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = photos.crops

    def interrupted(photo, *rest):
        if photo.name == "coffee":
            raise KeyboardInterrupt
        return drawn(photo, *rest)

    monkeypatch.setattr(photos, "crops", interrupted)
    with pytest.raises(KeyboardInterrupt):
        photos.make(replace(SMALL, out=str(tmp_path / "a")))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_photograph_is_named():
    with pytest.raises(UserError, match=r"skimage/data/nowhere\.png"):
        photos.photo_path(replace(PHOTOS[0], file="data/nowhere.png"))
    with pytest.raises(UserError, match="env_install"):
        photos.photo_path(replace(PHOTOS[0], package="no_such_package"))


def test_crops_larger_than_a_photo_allows_are_refused():
    with pytest.raises(UserError, match="--min-crop"):
        photos.crops(PHOTOS[0], "train", 1, replace(SMALL, min_crop=400))
