"""Class names and their numbers: what counts as a class, and how two sets of names map to each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.classes import match_classes
from common.data import ImageFolder
from common.errors import UserError
from tests import toys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toys.write_images(tmp_path / "images", counts=(3, 1, 2))


def test_hidden_files_and_folders_are_ignored_and_counted(folder: Path) -> None:
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/apple/0.png", "apple/._0.png", "apple/.thumbs/0.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / "apple/0.png").read_bytes())
    (folder / "apple/Thumbs.db").write_bytes(b"")
    (folder / "apple/0.gif").write_bytes(b"")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "0.png").write_bytes((folder / "apple/0.png").read_bytes())
    data = ImageFolder(folder, 32)
    assert data.classes == ["apple", "bird", "cat"] and data.labels == [0, 0, 0, 1, 2, 2]
    for phrase in (
        "6 images, 3 classes (apple, bird, cat)", "5 hidden files and folders", "2 files that are not images",
        "1 images outside the class folders",
    ):
        assert phrase in data.description


def test_an_empty_class_keeps_its_number(folder: Path) -> None:
    (folder / "bird/0.png").unlink()
    data = ImageFolder(folder, 32)
    assert data.classes == ["apple", "bird", "cat"] and data.labels == [0, 0, 0, 2, 2]
    assert "without images: 1 class (bird)" in data.description


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "validation"), ("a", "b")])
def test_a_folder_above_the_classes_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        toys.write_images(tmp_path / "data" / name, counts=(1, 1, 1))
    with pytest.raises(UserError, match=rf"data/{names[0]}'"):
        ImageFolder(tmp_path / "data", 32)


def test_a_class_may_have_folders_of_its_own(folder: Path) -> None:
    (folder / "bird/small").mkdir()
    (folder / "bird/0.png").rename(folder / "bird/small/0.png")
    assert ImageFolder(folder, 32).labels == [0, 0, 0, 1, 2, 2]


def test_labels_follow_the_names_of_the_training_classes(folder: Path) -> None:
    known = ["ant", "apple", "bird", "cat"]
    data = ImageFolder(folder, 32, classes=known)
    assert data.classes == known and data.labels == [1, 1, 1, 2, 3, 3] and data[5]["label"] == 3
    assert "not in this set: 1 class (ant) of 4" in data.description
    with pytest.raises(UserError, match=r"1 class \(bird\) that training had not"):
        ImageFolder(folder, 32, classes=["apple", "cat", "dog"])


@pytest.mark.parametrize(("found", "known", "numbers"), [
    (["bird", "cat"], ["apple", "bird", "cat"], [1, 2]),
    (["0", "1"], ["apple", "bird", "cat"], [0, 1]),  # shards from elsewhere: their numbers count
    (["n01", "n02", "n03"], ["0", "1", "2"], [0, 1, 2]),  # a released generator: the sorted names count
    (["10", "2"], [str(number) for number in range(11)], [10, 2]),
    (["n01", "n02"], ["0", "1", "2"], None), (["0", "1", "2", "3"], ["apple", "bird", "cat"], None),
])  # fmt: skip
def test_numbers_stand_for_classes_where_names_are_missing(
    found: list[str], known: list[str], numbers: list[int] | None
) -> None:
    if numbers is None:
        with pytest.raises(UserError, match="expected"):
            match_classes(found, known, "x")
    else:
        assert match_classes(found, known, "x") == numbers
