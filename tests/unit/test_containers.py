"""Images in containers of other people: the same batches as from the folder, nothing extracted."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from common.containers import open_images
from common.data import ImageFolder, stream
from common.errors import UserError
from tests import toys

OPTIONS = {"image_size": 32, "crop": "random", "flip": True, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_images(tmp_path_factory.mktemp("containers") / "train", counts=(3, 2, 4))


def kaggle(folder: Path, out: Path) -> str:
    """Kaggle's ImageNet: other files and another split beside the training images; some members are compressed."""
    inner = "ILSVRC/Data/CLS-LOC"
    with zipfile.ZipFile(out / "imagenet.zip", "w") as archive:
        archive.writestr("ILSVRC/Annotations/CLS-LOC/train/apple/0.xml", "<a/>")
        archive.writestr(f"__MACOSX/{inner}/train/apple/._0.png", "x")
        for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
            name = f"{inner}/train/{path.relative_to(folder)}"
            archive.write(path, name, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
        archive.write(path, f"{inner}/val/0.png")
    return f"{out}/imagenet.zip/{inner}/train"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def tar_of_tars(folder: Path, out: Path) -> str:
    """ILSVRC2012_img_train.tar: one tar per class."""
    with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as outer:
        for name in ("cat", "apple", "bird"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path in sorted((folder / name).iterdir()):
                    add(inner, path.name, path.read_bytes())
            add(outer, f"{name}.tar", buffer.getvalue())
    return str(out / "ILSVRC2012_img_train.tar")


def plain_tar(folder: Path, out: Path) -> str:
    with tarfile.open(out / "set.tar", "w") as archive:
        archive.add(folder, "./imagenet/train")
    return str(out / "set.tar")


def shards(folder: Path, out: Path) -> str:
    """timm/imagenet-1k-wds: the shards of two splits in one folder, labels in .json, class names nowhere."""
    for split, paths in (("train", sorted(folder.rglob("*.png"))), ("validation", [])):
        for part in range(2):
            with tarfile.open(out / f"imagenet1k-{split}-000{part}.tar", "w") as archive:
                for path in paths[part::2]:
                    label = sorted(toys.COLOURS).index(path.parent.name)
                    name = f"{path.parent.name}/{path.stem}"
                    add(archive, f"{name}.json", json.dumps({"label": label}).encode())
                    add(archive, f"{name}.png", path.read_bytes())
    return f"{out}/imagenet1k-train-{{0000..0001}}.tar"


@pytest.mark.parametrize("make", [kaggle, tar_of_tars, plain_tar, shards])
def test_the_same_batches_as_from_the_folder(folder: Path, tmp_path: Path, make: object) -> None:
    root = make(folder, tmp_path)
    before = {path for path in tmp_path.rglob("*") if not path.name.startswith(".index")}
    first, plain = open_images(root, **OPTIONS), ImageFolder(folder, **OPTIONS)
    again = open_images(root, **OPTIONS)  # from the index
    assert {path for path in tmp_path.rglob("*") if not path.name.startswith(".index")} == before
    names = ["0", "1", "2"] if make is shards else plain.classes
    for found in (first, again):
        assert (found.classes, found.labels, found.names()) == (names, plain.labels, plain.names())
    assert "9 images, 3 classes" in again.description and again.description.startswith(f"{root}: ")
    for one, two in zip(stream(plain, 4, 0, 1, 7, 0, 5), stream(again, 4, 0, 1, 7, 0, 5, workers=1), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert open_images(root, 32, classes=["ant", *plain.classes] if make is not shards else plain.classes)


def test_splits_in_one_container_have_to_be_chosen(folder: Path, tmp_path: Path) -> None:
    kaggle(folder, tmp_path)
    with pytest.raises(UserError, match=r"splits train, val, .*imagenet\.zip/ILSVRC/Data/CLS-LOC/train"):
        open_images(tmp_path / "imagenet.zip", 32)
    with pytest.raises(UserError, match="no images in 'nowhere'"):
        open_images(tmp_path / "imagenet.zip/nowhere", 32)
    (tmp_path / "wds").mkdir()
    shards(folder, tmp_path / "wds")
    with pytest.raises(UserError, match=r"splits train, validation.*imagenet1k-train\*\.tar"):
        open_images(tmp_path / "wds", 32)
    with pytest.raises(UserError, match="no file matches"):
        open_images(tmp_path / "wds/test-*.tar", 32)
    (tmp_path / "x.7z").write_bytes(b"another format")
    with pytest.raises(UserError, match="not an image set"):
        open_images(tmp_path / "x.7z", 32)


@pytest.mark.parametrize("named", [True, False])
def test_parquet_of_the_hub(folder: Path, tmp_path: Path, named: bool) -> None:
    """Two files of several row groups, in the order of their rows."""
    plain = ImageFolder(folder, 32)
    rows = [{"image": {"bytes": plain.content(i), "path": None}, "label": plain.labels[i]} for i in range(len(plain))]
    (tmp_path / "data").mkdir()
    for part in range(2):
        table = pyarrow.Table.from_pylist(rows[part::2])
        if named:
            features = {"label": {"names": plain.classes, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pyarrow.parquet.write_table(table, tmp_path / f"data/train-{part:05d}-of-00002.parquet", row_group_size=2)
    found = open_images(tmp_path, 32)
    order = [*range(0, 9, 2), *range(1, 9, 2)]
    assert found.labels == [plain.labels[i] for i in order]
    assert found.classes == (plain.classes if named else ["0", "1", "2"])
    assert [found.content(at) for at in range(9)] == [plain.content(i) for i in order]
    assert "2 parquet files, 9 images" in found.description


def test_an_unwritable_folder_is_indexed_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plain_tar(folder, tmp_path)
    monkeypatch.setattr("common.containers.index.CACHE", tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert len(open_images(root, 32)) == 9
    assert list((tmp_path / "cache").glob(".index-*.npz")) and not list(tmp_path.glob(".index-*"))
