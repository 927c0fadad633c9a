"""The same images in containers as other programs write them, each below a folder `out`."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from scipy.io import savemat
from webdataset import ShardWriter

SYNSETS = ("n01440764", "n01443537", "n02085620")
DEVKIT_ORDER = (3, 1, 2)
"""Number of each synset in the development kit, which does not sort them."""
HEAD = "ILSVRC/Data/CLS-LOC"


def write_imagenet(root: Path, each: int = 3, side: tuple[int, int] = (44, 50)) -> Path:
    """`root`/{train,val}/<synset>: the same JPEG files under the names that ImageNet's training and validation have."""
    rng = np.random.default_rng(0)
    for label, synset in enumerate(SYNSETS):
        colour = np.eye(3)[label] * 160 + 40
        for split in ("train", "val"):
            (root / split / synset).mkdir(parents=True)
        for number in range(each):  # 7, 18, 29, ...: as text they sort otherwise
            pixels = np.clip(colour + rng.integers(-40, 41, (3, 3, 3)), 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize(side).save(buffer, "JPEG")
            (root / "train" / synset / f"{synset}_{7 + 11 * number}.JPEG").write_bytes(buffer.getvalue())
        for rank, path in enumerate(sorted((root / "train" / synset).iterdir())):
            name = f"ILSVRC2012_val_{1 + rank * len(SYNSETS) + label:08d}.JPEG"
            (root / "val" / synset / name).write_bytes(path.read_bytes())
    return root


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def label(path: Path) -> int:
    return SYNSETS.index(path.parent.name)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


# ------------------------------------------------------------------------------------------------------- writers


def shard_writer(root: Path, out: Path) -> str:
    """webdataset.ShardWriter: labels in .cls, read through a brace pattern."""
    with ShardWriter(f"{out}/some-%04d.tar", maxcount=len(files(root / "train")) // 2 + 1, verbose=0) as writer:
        for path in reversed(files(root / "train")):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label(path)})
    return f"{out}/some-{{0000..0001}}.tar"


def json_shards(root: Path, out: Path) -> str:
    """Shards of two splits in one folder, as in timm/imagenet-1k-wds: labels in .json."""
    for split in ("train", "validation"):
        for part in range(2):
            with tarfile.open(out / f"imagenet1k-{split}-000{part}.tar", "w") as archive:
                for path in files(root / "train")[part::2]:
                    add(archive, f"{path.stem}.json", json.dumps({"label": label(path)}).encode())
                    add(archive, f"{path.stem}.jpg", path.read_bytes())
    return f"{out}/imagenet1k-train-*.tar"


def gnu_tar(root: Path, out: Path) -> str:
    """GNU tar of the folder: classes are folders in the names."""
    subprocess.run(["tar", "-cf", str(out / "imagenet.tar"), "-C", str(root), "./train"], check=True)
    return str(out / "imagenet.tar")


def tar_of_tars(root: Path, out: Path) -> str:
    """ILSVRC2012_img_train.tar: a tar for each class, in any order."""
    with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in reversed(SYNSETS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for path in (root / "train" / synset).iterdir():
                    add(archive, path.name, path.read_bytes())
            add(outer, f"{synset}.tar", inner.getvalue())
    return str(out / "ILSVRC2012_img_train.tar")


def validation_tar(root: Path, out: Path) -> str:
    """ILSVRC2012_img_val.tar, with the development kit's archive beside it."""
    by_name = {path.name: path for path in files(root / "val")}
    with tarfile.open(out / "ILSVRC2012_img_val.tar", "w") as archive:
        for name in sorted(by_name, reverse=True):
            add(archive, name, by_name[name].read_bytes())
    numbers = [DEVKIT_ORDER[label(by_name[name])] for name in sorted(by_name)]
    table = np.array(
        [(number, synset) for number, synset in zip(DEVKIT_ORDER, SYNSETS, strict=True)],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object)],
    )  # fmt: skip
    meta = io.BytesIO()
    savemat(meta, {"synsets": table})
    with tarfile.open(out / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{number}\n" for number in numbers).encode()
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return str(out / "ILSVRC2012_img_val.tar")


def plain_zip(root: Path, out: Path) -> str:
    """zipfile of the Python library, deflated."""
    with zipfile.ZipFile(out / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in reversed(files(root / "train")):
            archive.write(path, path.relative_to(root / "train"))
    return str(out / "set.zip")


def kaggle(root: Path, out: Path) -> Path:
    """Kaggle's ImageNet: both splits, other files beside them, flat validation images with a table of labels."""
    with zipfile.ZipFile(out / "imagenet.zip", "w") as archive:
        archive.writestr(f"ILSVRC/Annotations/CLS-LOC/train/{SYNSETS[0]}/0.xml", "<a/>")
        archive.writestr(f"__MACOSX/{HEAD}/train/{SYNSETS[0]}/._0.JPEG", "x")
        rows = ["ImageId,PredictionString"]
        for number, path in enumerate(files(root / "train")):
            how = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.write(path, f"{HEAD}/train/{path.relative_to(root / 'train')}", how)
        for path in files(root / "val"):
            archive.write(path, f"{HEAD}/val/{path.name}")
            rows.append(f"{path.stem},{path.parent.name} 1 2 3 4 {path.parent.name} 5 6 7 8")
        archive.writestr("LOC_val_solution.csv", "\n".join(rows) + "\n")
    return out / "imagenet.zip"


def kaggle_train(root: Path, out: Path) -> str:
    return f"{kaggle(root, out)}/{HEAD}/train"


def kaggle_validation(root: Path, out: Path) -> str:
    return f"{kaggle(root, out)}/{HEAD}/val"


def parquet(root: Path, out: Path, compression: str = "snappy") -> str:
    """The layout of `datasets` for the hub: the schema and metadata of ILSVRC/imagenet-1k, groups of 100 rows."""
    words = ["tench, Tinca tinca", "goldfish, Carassius auratus", "Chihuahua"]
    features = {
        "image": {"mode": None, "decode": True, "_type": "Image"}, "label": {"names": words, "_type": "ClassLabel"},
    }  # fmt: skip
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("label", pyarrow.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (out / "data").mkdir()
    chosen = np.random.default_rng(1).permutation(len(files(root / "train"))).tolist()
    for part in range(2):
        paths = [files(root / "train")[at] for at in chosen[part::2]]
        rows = [
            {
                "image": {"bytes": path.read_bytes(), "path": f"{path.stem}_{path.parent.name}.JPEG"},
                "label": label(path),
            }
            for path in paths
        ]  # fmt: skip
        table = pyarrow.Table.from_pylist(rows, schema)
        file = out / f"data/train-{part:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, file, row_group_size=100, compression=compression)
    return str(out)


def packed(root: Path, out: Path) -> str:
    from common.shards import pack

    return str(pack(root / "train", out / "shards", shard_mb=0.01))


CONTAINERS: dict[str, Callable[[Path, Path], str]] = {
    "webdataset.ShardWriter, .cls": shard_writer, "WebDataset, .json": json_shards, "GNU tar of a folder": gnu_tar,
    "ILSVRC2012_img_train.tar": tar_of_tars, "ILSVRC2012_img_val.tar": validation_tar, "zipfile": plain_zip,
    "Kaggle's zip, train": kaggle_train, "Kaggle's zip, val": kaggle_validation, "parquet of the hub": parquet,
    "pack_images.sh": packed,
}  # fmt: skip
