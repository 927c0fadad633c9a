"""Tar shards: what goes in comes out, order and crops are those of the image folder, other programs read them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from common import shards
from common.containers import ImageContainers, open_images
from common.data import ImageFolder, stream
from common.errors import UserError
from tests import toys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ and shards/ of some 10,000 bytes each."""
    root = tmp_path_factory.mktemp("shards")
    toys.write_images(root / "images", counts=(6, 3, 5))
    shards.pack(root / "images", root / "shards", shard_mb=0.01)
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".index"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_there_and_back(made: Path, tmp_path: Path) -> None:
    assert len(list((made / "shards").glob("*.tar"))) > 2
    shards.unpack(made / "shards", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(made / "images")
    again = shards.pack(made / "images", tmp_path / "again", shard_mb=0.01)
    assert contents(again) == contents(made / "shards")  # packed twice, byte for byte the same
    assert not list(tmp_path.glob("*.partial"))


def test_another_program_reads_them(made: Path) -> None:
    """The library's own reader, in its own way: images decoded, labels as numbers, keys as we chose them."""
    tars = sorted(str(path) for path in (made / "shards").glob("*.tar"))
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls"))
    folder = ImageFolder(made / "images", 32)
    assert [(f"{key}.png", label) for key, _, label in found] == list(zip(folder.names(), folder.labels, strict=True))
    assert all(np.array_equal(pixels, np.asarray(folder.read(i))) for i, (_, pixels, _) in enumerate(found))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_reads_the_same_batches_from_either(made: Path, workers: int) -> None:
    options = {"image_size": 32, "crop": "random", "flip": True, "seed": 3}
    folder, packed = (open_images(made / name, **options) for name in ("images", "shards"))
    assert type(packed) is ImageContainers and type(folder) is ImageFolder
    assert (packed.classes, packed.labels, packed.names()) == (folder.classes, folder.labels, folder.names())
    one = list(stream(folder, 4, 0, 1, 7, 0, 8))
    halves = [list(stream(packed, 4, rank, 2, 7, 3, 8, workers)) for rank in range(2)]  # two ranks, resumed at step 3
    for expected, *parts in zip(one[3:], *halves, strict=True):
        for key in expected:
            assert torch.equal(expected[key], torch.cat([part[key] for part in parts]))


def test_a_resume_reads_nothing_of_what_came_before(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, read = ImageContainers(made / "shards", 32), []
    content = ImageContainers.content
    monkeypatch.setattr(ImageContainers, "content", lambda self, index: read.append(index) or content(self, index))
    labels = [batch["index"].tolist() for batch in stream(packed, 4, 0, 1, 7, 100, 102)]
    assert len(read) == 8 and read == [index for batch in labels for index in batch]


def foreign(root: Path, **members: bytes) -> Path:
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_shards_from_elsewhere(tmp_path: Path) -> None:
    """Members in any order, other members among them, labels without names."""
    members = {"7.cls": b"2", "7.txt": b"a caption", "7.png": png(), "8.png": png(), "8.json": b'{"label": 0}'}
    root = foreign(tmp_path / "foreign", **members)
    packed = open_images(root, 32)
    assert (packed.classes, packed.labels, packed.names()) == (["0", "1", "2"], [0, 2], ["8.png", "7.png"])
    assert packed[0]["pixels"][0, 0].tolist() == [1, 2, 3]
    shards.unpack(root, tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["0/8.png", "2/7.png"]


def test_what_cannot_be_read_is_one_sentence(made: Path, tmp_path: Path) -> None:
    for name, members, message in (
        ("unlabelled", {"1.png": png(), "2.png": png(), "2.cls": b"0"}, "has no label"),
        ("none", {}, "holds no images"),
        ("twice", {"1.png": png(), "1.jpg": png(), "1.cls": b"0"}, "several images of one key"),
        ("label", {"1.png": png(), "1.cls": b"cat"}, "cannot be read .*not a class number"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(foreign(tmp_path / name, **members), 32)
    (tmp_path / "none/a.tar").write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(UserError, match="uncompressed"):
        open_images(tmp_path / "none", 32)
    hostile = foreign(tmp_path / "hostile", **{"../../x.png": png(), "../../x.cls": b"0"})
    with pytest.raises(UserError, match="leads out"):
        shards.unpack(hostile, tmp_path / "out")
    broken = foreign(tmp_path / "broken", **{"1.png": b"no image", "1.cls": b"0"})
    with pytest.raises(UserError, match=r"a\.tar:1\.png.*cannot be read"):
        open_images(broken, 32)[0]
    with pytest.raises(UserError, match="exists"):
        shards.pack(made / "images", made / "shards")


def test_a_shard_that_changed_is_indexed_again(made: Path, tmp_path: Path) -> None:
    root = shards.pack(made / "images", tmp_path / "shards", shard_mb=0.01)
    assert len(open_images(root, 32)) == 14
    with tarfile.open(root / "000001.tar", "a") as archive:
        for name, content in (("cat/9.png", png()), ("cat/9.cls", b"2")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert len(changed := open_images(root, 32)) == 15 and changed.names()[-1] == "cat/9.png"
    os.unlink(root / "000001.tar")
    assert len(open_images(root, 32)) < 14


def test_names_with_dots_come_back_exactly_and_a_key_is_needed_for_each(tmp_path: Path) -> None:
    folder = toys.write_images(tmp_path / "images")
    for name in ("shot.2024.png", "shot.2025.png", "100%2E.png"):
        (folder / "apple" / name).write_bytes((folder / "apple/0.png").read_bytes())
    (folder / "bird").rename(folder / "bird.v2")
    packed = shards.pack(folder, tmp_path / "shards")
    assert open_images(packed, 32).names() == ImageFolder(folder, 32).names()
    assert contents(shards.unpack(packed, tmp_path / "back")) == contents(folder)
    (folder / "apple/0.jpg").write_bytes((folder / "apple/0.png").read_bytes())
    with pytest.raises(UserError, match="2 images are called 'apple/0'"):
        shards.pack(folder, tmp_path / "again")


def test_an_empty_class_keeps_its_number(tmp_path: Path) -> None:
    folder = toys.write_images(tmp_path / "images", counts=(2, 0, 1))
    packed = open_images(shards.pack(folder, tmp_path / "shards"), 32)
    assert packed.classes == ["apple", "bird", "cat"] and packed.labels == [0, 0, 2]


def test_the_job(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(*words: object) -> None:
        monkeypatch.setattr("sys.argv", ["pack", *map(str, words)])
        shards.main()

    job("--data-path", made / "images", "--out", tmp_path / "packed")
    job("--unpack", "--data-path", tmp_path / "packed", "--out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(made / "images")
    with pytest.raises(UserError, match="out"):
        job("--data-path", made / "images")
