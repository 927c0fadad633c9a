"""Image folders and the order they are read in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import ImageFolder, StreamSampler, batches, share, stream
from common.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("b", 4), ("a", 3)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_classes_are_the_sorted_folders(folder: Path) -> None:
    data = ImageFolder(folder, 32)
    assert data.classes == ["a", "b", "empty"] and data.labels == [0] * 3 + [1] * 4
    item = data[6]
    assert item["pixels"].shape == (32, 32, 3) and item["pixels"].dtype == np.uint8 and item["label"] == 1


def test_images_without_class_folders_are_one_class(folder: Path) -> None:
    assert ImageFolder(folder / "a", 32).classes == ["a"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_reads_the_same_batches(ranks: int) -> None:
    samplers = [StreamSampler(10, 4, rank, ranks, seed=3, start_step=0, steps=6) for rank in range(ranks)]
    together = [[item for part in parts for item in part] for parts in zip(*samplers, strict=True)]
    assert together == list(StreamSampler(10, 4, 0, 1, seed=3, start_step=0, steps=6))


def test_every_image_once_an_epoch_and_a_resume_in_the_middle() -> None:
    whole = list(StreamSampler(10, 4, 0, 1, seed=3, start_step=0, steps=10))
    order = [index for batch in whole for index, _ in batch]
    assert all(sorted(order[at : at + 10]) == list(range(10)) for at in range(0, 40, 10)) and order[:10] != order[10:20]
    assert list(StreamSampler(10, 4, 0, 1, seed=3, start_step=7, steps=10)) == whole[7:]
    assert list(StreamSampler(10, 4, 0, 1, seed=4, start_step=0, steps=10)) != whole


def test_augmentation_depends_on_the_position_alone(folder: Path) -> None:
    data = ImageFolder(folder, 32, crop="random", flip=True, seed=1)
    assert np.array_equal(data[2, 5]["pixels"], data[2, 5]["pixels"])
    assert any(not np.array_equal(data[2, 5]["pixels"], data[2, p]["pixels"]) for p in range(6, 12))
    first = [batch["pixels"].numpy() for batch in stream(data, 4, 0, 1, 1, 0, 3)]
    again = [batch["pixels"].numpy() for batch in stream(data, 4, 0, 1, 1, 1, 3, workers=1)]
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], again, strict=True))


@pytest.mark.parametrize(("count", "ranks"), [(7, 2), (7, 3), (2, 4), (0, 2)])
def test_shares_hold_every_item_once(count: int, ranks: int) -> None:
    assert [i for rank in range(ranks) for i in share(count, rank, ranks)] == list(range(count))


def test_batches_visit_in_order(folder: Path) -> None:
    found = [batch["index"].tolist() for batch in batches(ImageFolder(folder, 32), range(2, 7), 2)]
    assert found == [[2, 3], [4, 5], [6]]


def test_mistakes_end_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ImageFolder(tmp_path / "nowhere", 32)
    with pytest.raises(UserError, match="holds no images"):
        ImageFolder(folder / "empty", 32)
    with pytest.raises(UserError, match="expected random or center"):
        ImageFolder(folder, 32, crop="middle")
    with pytest.raises(UserError, match="multiple of 3"):
        StreamSampler(10, 4, 0, 3, 0, 0, 1)
    (folder / "a" / "0.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(UserError, match=r"0\.png.*cannot be read"):
        ImageFolder(folder, 32)[0]
