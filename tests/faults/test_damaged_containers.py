"""Damaged and hostile containers: one sentence that names the container, the member and the cure.

`python -m tests.faults.test_damaged_containers` prints the sentences.
"""

from __future__ import annotations

import gzip
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from common.containers import open_images
from common.data import stream
from common.errors import UserError
from tests.containers import (
    add,
    files,
    gnu_tar,
    json_shards,
    kaggle,
    parquet,
    plain_zip,
    validation_tar,
    write_imagenet,
)  # fmt: skip

Damage = Callable[[Path, Path], str | Path]


def overwrite(path: Path, at: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    return path


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def member(path: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(path) as archive:
        return archive.getmembers()[number]


def shard_cut(root: Path, out: Path) -> Path:
    path = Path(json_shards(root, out).replace("*", "0000"))
    return cut(path, member(path, 3).offset_data + 100)


def shard_cut_between(root: Path, out: Path) -> Path:
    path = Path(gnu_tar(root, out))
    return cut(path, member(path, 5).offset)


def shard_header(root: Path, out: Path) -> Path:
    path = Path(gnu_tar(root, out))
    return overwrite(path, member(path, 5).offset + 20, b"\xff" * 90)


def compressed_tar(root: Path, out: Path) -> Path:
    path = Path(gnu_tar(root, out))
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def twice_in_tar(root: Path, out: Path) -> Path:
    path = Path(gnu_tar(root, out))
    with tarfile.open(path, "a") as archive:
        add(archive, f"./train/{files(root / 'train')[0].relative_to(root / 'train')}", b"another")
    return path


def parquet_cut(root: Path, out: Path) -> Path:
    path = next(Path(parquet(root, out)).glob("data/*.parquet"))
    return cut(path, path.stat().st_size // 2)


def parquet_columns(root: Path, out: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"], "text": ["a dog"]}), out / "pairs.parquet")
    return out / "pairs.parquet"


def parquet_page(root: Path, out: Path) -> Path:
    path = next(Path(parquet(root, out)).glob("data/*.parquet"))
    before = open_images(path, 32)  # indexed while it was whole
    offset, stored = before._rows[0, 1:3].tolist()
    overwrite(path, offset + stored // 2, bytes(stored // 4))
    return path


def parquet_path(root: Path, out: Path) -> Path:
    (out.parent / "secret.png").write_bytes(files(root / "train")[0].read_bytes())
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = {"image": [{"bytes": None, "path": "../secret.png"}], "label": [0]}
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())])
    pyarrow.parquet.write_table(pyarrow.table(rows, schema), out / "paths.parquet")
    return out / "paths.parquet"


def zip_checksum(root: Path, out: Path) -> Path:
    path = kaggle(root, out)
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("8.JPEG"))
    return Path(f"{overwrite(path, entry.header_offset + 200, b'damage')}/ILSVRC/Data/CLS-LOC/train")


def zip_cut(root: Path, out: Path) -> Path:
    path = Path(plain_zip(root, out))
    return cut(path, path.stat().st_size - 300)


def in_zip(out: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(out / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out / "made.zip"


def twice_in_zip(root: Path, out: Path) -> Path:
    path = Path(plain_zip(root, out))
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[0], b"another")
    return path


def encrypted(root: Path, out: Path) -> Path:
    path = Path(plain_zip(root, out))
    content = path.read_bytes()
    at = content.index(b"PK\1\2") + 8
    return overwrite(path, at, bytes([content[at] | 1]))


def unlabelled(root: Path, out: Path) -> Path:
    with tarfile.open(out / "some.tar", "w") as archive:
        for name, content in {"1.jpg": b"x", "1.cls": b"0", "2.jpg": b"y"}.items():
            add(archive, name, content)
    return out / "some.tar"


def leads_out(root: Path, out: Path) -> Path:
    with tarfile.open(out / "some.tar", "w") as archive:
        add(archive, "a/../../x.jpg", files(root / "train")[0].read_bytes())
    return out / "some.tar"


def pointer(root: Path, out: Path) -> Path:
    (out / "train.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    return out / "train.parquet"


def validation_without_kit(root: Path, out: Path) -> str:
    path = validation_tar(root, out)
    (out / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    return path


def validation_without_map(root: Path, out: Path) -> str:
    path = validation_without_kit(root, out)
    (out / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n" * 9)
    return path


DAMAGED: dict[str, tuple[Damage, str]] = {
    "shard cut within an image": (shard_cut, r"-0000\.tar' cannot be read after '.*(ends within 'n0.*jpg').*again"),
    "tar cut between images": (shard_cut_between, r"imagenet\.tar' cannot be read after .*closing block.*again"),
    "damaged header in a tar": (shard_header, r"imagenet\.tar' cannot be read after .*closing block.*again"),
    "compressed tar": (compressed_tar, r"imagenet\.tar' cannot be read .*uncompressed"),
    "the same name twice in a tar": (twice_in_tar, r"imagenet\.tar' holds 'train/n.*JPEG' twice; write"),
    "an image without label": (unlabelled, r"some\.tar': image '2\.jpg' has no label.*expected"),
    "a name that leaves the tar": (leads_out, r"some\.tar': the name 'a/\.\./\.\./x\.jpg' leads out.*do not trust"),
    "parquet half downloaded": (parquet_cut, r"00002\.parquet' cannot be read .*again"),
    "git-lfs pointer": (pointer, r"train\.parquet' is not an image set.*git lfs pull"),
    "parquet without labels": (parquet_columns, r"pairs\.parquet' cannot be read \(its columns are image, text\)"),
    "parquet with a damaged page": (parquet_page, r"00002\.parquet:n0.*JPEG' cannot be read .*(copy|replace)"),
    "a path that leaves the parquet": (parquet_path, r"paths\.parquet': the name '\.\./secret\.png' leads out"),
    "zip with a bad checksum": (zip_checksum, r"imagenet\.zip:n0.*JPEG' cannot be read .*checksum.*copy"),
    "zip cut": (zip_cut, r"set\.zip' cannot be read .*again"),
    "encrypted zip": (encrypted, r"set\.zip' cannot be read .*n02085620/.*encrypted"),
    "the same name twice in a zip": (twice_in_zip, r"set\.zip' holds 'n0.*JPEG' twice; write"),
    "zip bomb": (lambda _, out: in_zip(out, **{"a/x.png": bytes(1 << 29)}), r"zip': 'a/x\.png' has 536870912 bytes"),
    "an image that is not one": (lambda _, out: in_zip(out, **{"a/x.png": b"text"}), r"zip:a/x\.png' cannot .*replace"),
    "validation images without labels": (validation_without_kit, r"img_val\.tar' holds validation images.*devkit"),
    "ground truth without its classes": (validation_without_map, r"order of its own; put meta\.mat .*img_val\.tar"),
}  # fmt: skip


def sentence(root: Path, out: Path, damage: Damage) -> str:
    """What opening a damaged container and reading all its images says."""
    out.mkdir()
    path = damage(root, out)
    before = {file for file in out.rglob("*") if not file.name.startswith(".index")}
    with pytest.raises(UserError) as caught:
        images = open_images(path, 32)
        for number in range(len(images)):
            images[number]
    assert {file for file in out.rglob("*") if not file.name.startswith(".index")} == before  # nothing is extracted
    return str(caught.value)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_sentence(images: Path, tmp_path: Path, name: str) -> None:
    damage, expected = DAMAGED[name]
    said = sentence(images, tmp_path / "out", damage)
    assert "\n" not in said and re.search(expected, said), said


@pytest.mark.parametrize("damage", [zip_checksum, parquet_page])
def test_skip_replaces_damaged_images(images: Path, tmp_path: Path, damage: Damage) -> None:
    path = damage(images, tmp_path)
    found = open_images(path.parent if damage is parquet_page else path, 32, bad_images="skip")
    seen = stream(found, 3, 0, 1, 0, 0, 3)
    replaced = [(a, b) for batch in seen for a, b in zip(batch["asked"].tolist(), batch["index"].tolist(), strict=True)]
    assert any(asked != got for asked, got in replaced) and len(replaced) == 9


def test_no_more_is_unpacked_than_a_zip_states(tmp_path: Path) -> None:
    path = in_zip(tmp_path, **{"a/x.png": bytes(1 << 20)})
    content = path.read_bytes()
    for header, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        overwrite(path, content.index(header) + at, (1000).to_bytes(4, "little"))
    with pytest.raises(UserError, match=r"x\.png' cannot be read .*checksum"):
        open_images(path, 32).content(0)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = write_imagenet(root / "images")
        for number, (name, (damage, _)) in enumerate(DAMAGED.items()):
            said = sentence(images, root / str(number), damage).replace(f"{root}/{number}/", "")
            sys.stdout.write(f"| {name} | {said} |\n")


if __name__ == "__main__":
    main()
