"""Images in containers of other people: the same batches as from the folder, nothing extracted."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from common.containers import MOST_OPEN, index, open_images
from common.containers.parquet import BY_GROUP
from common.data import ImageFolder, stream
from common.errors import UserError
from common.shards import main as shards_job
from common.shards import pack
from tests import containers
from tests.containers import CONTAINERS, DEVKIT_ORDER, HEAD, SYNSETS, add, files, gnu_tar, kaggle, label

OPTIONS = {"image_size": 32, "crop": "random", "flip": True, "seed": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return containers.write_imagenet(tmp_path_factory.mktemp("containers"))


def visible(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.name.startswith(".index")}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_same_batches_as_from_the_folder(images: Path, tmp_path: Path, name: str) -> None:
    root = CONTAINERS[name](images, tmp_path)
    before = visible(tmp_path)
    plain = ImageFolder(images / ("val" if "val" in name else "train"), **OPTIONS)
    built = open_images(root, **OPTIONS)
    with mock.patch.object(index, "_build", side_effect=AssertionError):
        again = open_images(root, **OPTIONS)
    assert visible(tmp_path) == before
    for found in (built, again):
        assert (found.classes, found.labels, found.names()) == (list(SYNSETS), plain.labels, plain.names())
        assert [found.content(at) for at in range(9)] == [plain.content(at) for at in range(9)]
    assert "9 images, 3 classes" in again.description and again.description.startswith(f"{root}: ")
    for one, two in zip(stream(plain, 4, 0, 1, 7, 0, 5), stream(again, 4, 0, 1, 7, 0, 5, workers=1), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_splits_in_one_container_have_to_be_chosen(images: Path, tmp_path: Path) -> None:
    kaggle(images, tmp_path)
    with pytest.raises(UserError, match=rf"splits train, val, .*imagenet\.zip/{HEAD}/train"):
        open_images(tmp_path / "imagenet.zip", 32)
    with pytest.raises(UserError, match="no images in 'nowhere'"):
        open_images(tmp_path / "imagenet.zip/nowhere", 32)
    (tmp_path / "wds").mkdir()
    containers.json_shards(images, tmp_path / "wds")
    with pytest.raises(UserError, match=r"splits train, validation.*imagenet1k-train\*\.tar"):
        open_images(tmp_path / "wds", 32)
    with pytest.raises(UserError, match="no file matches"):
        open_images(tmp_path / "wds/test-*.tar", 32)
    (tmp_path / "x.7z").write_bytes(b"another format")
    with pytest.raises(UserError, match="not an image set"):
        open_images(tmp_path / "x.7z", 32)
    (tmp_path / "mixed").mkdir()
    gnu_tar(images, tmp_path / "mixed")
    (images / "train" / SYNSETS[0]).rename(tmp_path / "mixed" / SYNSETS[0])
    with pytest.raises(UserError, match=f"holds 'imagenet.tar' and images in '{SYNSETS[0]}'"):
        open_images(tmp_path / "mixed", 32)
    (tmp_path / "mixed" / SYNSETS[0]).rename(images / "train" / SYNSETS[0])


def test_the_index_job_names_the_splits_and_indexes_each(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    containers.json_shards(images, tmp_path)
    monkeypatch.setattr("sys.argv", ["pack", "--index", "--data-path", str(tmp_path)])
    shards_job()
    said = capsys.readouterr().err
    assert "warning: " in said and "splits train, validation" in said and said.count("2 tar files, 9 images") == 2
    assert len(list(tmp_path.glob(".index-*.npz"))) == 2


# ------------------------------------------------------------------------------------------------------- parquet


def write_parquet(path: Path, contents: list[bytes], labels: list[int], names: list[str] | None = None, **options):
    rows = [
        {"image": {"bytes": content, "path": names and names[at]}, "label": labels[at]}
        for at, content in enumerate(contents)
    ]
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())])
    metadata = options.pop("metadata", None)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema.with_metadata(metadata)), path, **options)


@pytest.mark.parametrize("options", [
    {"compression": "snappy"}, {"compression": "none"}, {"compression": "zstd", "use_dictionary": False},
    {"compression": "gzip"}, {"compression": "lz4"}, {"compression": "snappy", "data_page_version": "2.0"},
    {"compression": "snappy", "write_page_index": True, "write_page_checksum": True},
])  # fmt: skip
def test_images_are_read_from_their_pages(tmp_path: Path, options: dict[str, object]) -> None:
    """Row groups that begin with a dictionary, which is full after a megabyte, and go on without one."""
    rng = np.random.default_rng(0)
    contents = [rng.bytes(int(rng.integers(1, 200_000))) for _ in range(60)]
    labels = rng.integers(0, 5, 60).tolist()
    write_parquet(tmp_path / "a.parquet", contents, labels, row_group_size=25, **options)
    found = open_images(tmp_path / "a.parquet", 32)
    order = sorted(range(60), key=lambda at: (labels[at], at))
    assert [found.content(at) for at in range(60)] == [contents[at] for at in order]
    by_group = options["compression"] == "lz4" or "data_page_version" in options
    assert {bool(kind <= BY_GROUP) for kind in found._rows[:, 5]} == {by_group}


def test_equal_images_and_images_by_path(images: Path, tmp_path: Path) -> None:
    """Equal images share an entry of the dictionary; a path without bytes is a file beside the parquet file."""
    paths = files(images / "train")
    contents = [path.read_bytes() for path in (*paths, *paths)]
    write_parquet(tmp_path / "a.parquet", contents, [label(path) for path in paths] * 2)
    assert sorted(map(open_images(tmp_path / "a.parquet", 32).content, range(18))) == sorted(contents)
    names = [str(path.relative_to(images)) for path in paths]
    write_parquet(images / "paths.parquet", [None] * 9, [label(path) for path in paths], names)
    found = open_images(images / "paths.parquet", 32)
    assert [found.content(at) for at in range(9)] == contents[:9] and found.classes == list(SYNSETS)
    (images / "paths.parquet").unlink()


@pytest.mark.parametrize("named", [True, False])
def test_parquet_whose_images_have_no_names(images: Path, tmp_path: Path, named: bool) -> None:
    """Two files: the images of a class are in the order of their rows. Class names are those of the metadata."""
    plain = ImageFolder(images / "train", 32)
    words = ["tench", "goldfish", "Chihuahua"]
    about = {"info": {"features": {"label": {"names": words, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    (tmp_path / "data").mkdir()
    for part in range(2):
        chosen = range(part, 9, 2)
        write_parquet(
            tmp_path / f"data/train-{part:05d}-of-00002.parquet", [plain.content(i) for i in chosen],
            [plain.labels[i] for i in chosen], row_group_size=2,
            metadata={"huggingface": json.dumps(about)} if named else None,
        )  # fmt: skip
    found = open_images(tmp_path, 32)
    order = sorted([*range(0, 9, 2), *range(1, 9, 2)], key=lambda i: plain.labels[i])
    assert found.labels == plain.labels and found.classes == (words if named else ["0", "1", "2"])
    assert [found.content(at) for at in range(9)] == [plain.content(i) for i in order]
    assert "2 parquet files, 9 images" in found.description
    assert ("order of their labels" in found.description) == named
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\n")
    assert open_images(tmp_path, 32).classes == ["a", "b", "c"]


# -------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("names", ["meta.mat", "map_clsloc.txt"])
def test_the_development_kit_unpacked(images: Path, tmp_path: Path, names: str) -> None:
    root = containers.validation_tar(images, tmp_path)
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz") as archive:
        kit = {Path(member.name).name: archive.extractfile(member).read() for member in archive.getmembers()}
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    kit["map_clsloc.txt"] = "".join(f"{s} {n} word\n" for n, s in zip(DEVKIT_ORDER, SYNSETS, strict=True)).encode()
    for name in ("ILSVRC2012_validation_ground_truth.txt", names):
        (tmp_path / name).write_bytes(kit[name])
    assert open_images(root, 32).names() == ImageFolder(images / "val", 32).names()
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")  # the index is built again
    with pytest.raises(UserError, match=r"img_val\.tar': 'ILSVRC2012_val_0*[3-9]\.JPEG' is not in ILSVRC2012_valid"):
        open_images(root, 32)


def test_one_tar_for_each_class_in_a_folder(images: Path, tmp_path: Path) -> None:
    """ILSVRC2012_img_train.tar unpacked once."""
    for synset in SYNSETS:
        with tarfile.open(tmp_path / f"{synset}.tar", "w") as archive:
            for path in (images / "train" / synset).iterdir():
                add(archive, path.name, path.read_bytes())
    assert open_images(tmp_path, 32).names() == ImageFolder(images / "train", 32).names()


def test_keys_that_start_again_in_every_shard(tmp_path: Path) -> None:
    for part in range(2):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
            add(archive, "000.jpg", b"x")
            add(archive, "000.cls", b"%d" % part)
    found = open_images(tmp_path, 32)
    assert (found.names(), found.labels) == (["0/000.jpg", "1/000.jpg"], [0, 1])


# --------------------------------------------------------------------------------------------------------- index


def test_an_unwritable_folder_is_indexed_in_the_cache_and_a_colleague_s_index_is_used(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = gnu_tar(images, tmp_path)
    monkeypatch.setattr("common.containers.index.CACHE", tmp_path / "cache")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert len(open_images(root, 32)) == 9
    assert list((tmp_path / "cache").glob(".index-*.npz")) and not list(tmp_path.glob(".index-*"))
    monkeypatch.undo()
    open_images(root, 32)
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(index, "_build", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr("common.containers.index.CACHE", tmp_path / "nowhere")
    assert len(open_images(root, 32)) == 9


def _open(root: str, locks: bool, out: str) -> None:
    with mock.patch.object(index.fcntl, "flock", side_effect=None if locks else OSError):
        found = open_images(root, 32)
    Path(out).write_text(json.dumps([found.names(), found.labels]))


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_ask_at_once_agree(images: Path, tmp_path: Path, locks: bool) -> None:
    root = gnu_tar(images, tmp_path)
    spawn, outs = get_context("spawn"), [f"{tmp_path}/{number}.json" for number in range(3)]
    started = [spawn.Process(target=_open, args=(root, locks, out)) for out in outs]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert len({Path(out).read_text() for out in outs}) == 1
    assert not list(tmp_path.glob("*.partial")) and len(list(tmp_path.glob(".index-*.npz"))) == 1


def test_a_damaged_index_is_built_again(images: Path, tmp_path: Path) -> None:
    root = gnu_tar(images, tmp_path)
    names = open_images(root, 32).names()
    next(tmp_path.glob(".index-*.npz")).write_bytes(b"PK\3\4 damaged")
    assert open_images(root, 32).names() == names


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    for number in range(2 * MOST_OPEN):
        with tarfile.open(tmp_path / f"{number:04d}.tar", "w") as archive:
            add(archive, f"{number % 3}/{number}.png", b"x")
    found = open_images(tmp_path, 32)
    before = len(os.listdir("/proc/self/fd"))
    for at in np.random.default_rng(0).permutation(len(found)).tolist():
        assert found.content(at) == b"x"
    assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN
    del found
    assert len(os.listdir("/proc/self/fd")) <= before


# ------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("workers", [0, 1])
def test_packing_shrinks_what_is_larger(tmp_path: Path, workers: int) -> None:
    sides = {"a/large.JPEG": (90, 60), "a/small.jpg": (30, 20), "b/large.png": (40, 100), "b/odd.PNG": (28, 700)}
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for name, side in sides.items():
            buffer = io.BytesIO()
            Image.new("RGB", side, (200, 100, 50)).save(buffer, "PNG" if "png" in name.lower() else "JPEG")
            archive.writestr(name, buffer.getvalue())
    before = open_images(tmp_path / "some.zip", 20)
    found = open_images(pack(tmp_path / "some.zip", tmp_path / "shards", resize=28, workers=workers), 20)
    assert found.names() == before.names() and found.labels == before.labels
    assert [found.read(at).size for at in range(4)] == [(42, 28), (30, 20), (28, 70), (28, 700)]
    assert found.content(0)[:2] == b"\xff\xd8" and found.content(2)[1:4] == b"PNG"
    assert [found.content(at) == before.content(at) for at in range(4)] == [False, True, False, True]
    assert abs(np.asarray(found.read(0)).astype(int) - (200, 100, 50)).max() <= 2
    assert (tmp_path / "shards/names.txt").read_text().splitlines() == before.names()
