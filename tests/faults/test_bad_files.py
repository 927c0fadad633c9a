"""Files that are damaged, foreign or hostile: refused with a sentence, never wrongly accepted, never a hang.

Ten times as many mutations: python -m pytest -m slow tests/faults/test_bad_files.py
"""

from __future__ import annotations

import argparse
import io
import json
import pickle  # only to write what must be refused
import random
import signal
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from common import checkpoint, config, npz, weights
from common.codes import CodeStore
from common.containers import open_images
from common.data import ImageFolder, stream
from common.errors import UserError
from common.images import read_image
from common.shards import pack, unpack
from evaluations.c2i import evaluator
from tokenizer.config import TrainConfig

SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@contextmanager
def in_time(seconds: int = 10) -> Iterator[None]:
    """A hang becomes a failure."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat, overwrite or replace."""
    changed, kind = bytearray(content), rng.randrange(6)
    at = rng.randrange(max(1, len(content)))
    if kind <= 1 and content:
        for _ in range(rng.choice((1, 1, 4, 32))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        changed[at:at] = changed[at : at + rng.randrange(1, 64)]
    elif kind == 4:
        changed[at : at + 16] = rng.randbytes(16)
    else:
        changed = bytearray(rng.choice((b"", b"\0" * len(content), b"<html>404</html>", rng.randbytes(100))))
    return bytes(changed)


# ----------------------------------------------------------------------------------------------- images by hand


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """The header of a huge picture and hardly any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


RGB = Image.fromarray(COLOURS)
REFUSED = {
    "empty": b"",
    "text": b"not an image",
    "truncated": encoded(RGB)[:-700],
    "truncated_jpeg": encoded(RGB, "JPEG")[:-200],
    "bomb": png_of(60000, 60000),
    "large": png_of(12000, 11000),
    "narrow": png_of(60000, 1),
    "gif": encoded(RGB.convert("P"), "GIF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n",
    "float": encoded(Image.fromarray(COLOURS[..., 0].astype(np.float32)), "TIFF"),
    "int32": encoded(Image.fromarray(COLOURS[..., 0].astype(np.int32)), "TIFF"),
}
READ = {
    "palette": (encoded(RGB.quantize(256)), 60),
    "cmyk": (encoded(RGB.convert("CMYK"), "TIFF"), 1),
    "alpha": (encoded(RGB.convert("RGBA")), 0),
    "grey_alpha": (encoded(RGB.convert("LA")), 255),
    "misnamed": (encoded(RGB, "BMP"), 0),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(REFUSED[name])
    with in_time(), pytest.raises(UserError, match=r"bad\.png.*cannot be read") as caught:
        read_image(tmp_path / "bad.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READ)
def test_what_is_converted(name: str, tmp_path: Path) -> None:
    content, tolerance = READ[name]
    (tmp_path / "odd.png").write_bytes(content)
    found = np.asarray(read_image(tmp_path / "odd.png")).astype(int)
    assert found.shape == COLOURS.shape and np.abs(found - COLOURS).max() <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_byte(kind: str) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    found = np.asarray(read_image("x", encoded(Image.fromarray(values), kind)))
    assert np.array_equal(found, np.repeat((values >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_sentence_of_a_worker_process_is_one_line(workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        next(iter(stream(ImageFolder(tmp_path, 8), 1, 0, 1, 0, 0, 1, workers)))
    assert str(caught.value).startswith("image '") and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- mutations


class Kinds:
    """For each kind of file: a folder that is good, the files to damage, a reader, and what it must return or raise."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, rng: random.Random) -> None:
        """Any picture is accepted that is a picture: the formats without checksums cannot tell a flipped bit."""
        kind = rng.choice(sorted(SUFFIXES))
        path = self.root / f"image.{SUFFIXES[kind]}"
        path.write_bytes(mutate(encoded(RGB, kind), rng))
        image = read_image(path)
        assert image.mode == "RGB" and max(image.size) <= 64 * min(image.size)

    def checkpoint(self, rng: random.Random) -> None:
        weights = {"model": {"a": torch.arange(300.0), "b": torch.ones(2, 2)}}
        folder = checkpoint.save(self.root, 1, weights, {"optimizer": {"k": torch.ones(5)}}, {"model": {"x": 1}})
        victim = rng.choice(sorted(folder.iterdir()))
        before = victim.read_bytes()
        victim.write_bytes(mutate(before, rng))
        accepted = checkpoint.resolve_folder(folder)
        found = checkpoint.read_weights(accepted, "model")
        assert all(torch.equal(found[key], value) for key, value in weights["model"].items())
        assert torch.equal(checkpoint.read_state(accepted)["optimizer"]["k"], torch.ones(5))
        assert checkpoint.read_config(accepted) == {"model": {"x": 1}}

    def released(self, rng: random.Random) -> None:
        """The archive's own checksums tell damage."""
        path, tensors = self.root / "released.pt", {"a": torch.arange(300.0)}
        torch.save({"model": tensors}, path)
        path.write_bytes(mutate(path.read_bytes(), rng))
        assert torch.equal(weights.open_weights(path, ["model"]).tensors()["a"], tensors["a"])

    def unchecked(self, rng: random.Random) -> None:
        """The formats without checksums: what is read is a dict of the tensors, or refused."""
        path, tensors = self.root / "unchecked", {"a": torch.arange(30.0), "b": torch.ones(2, 2, dtype=torch.float16)}
        if rng.random() < 0.5:
            save_file(tensors, path)
        else:
            content = {"model": tensors, "args": argparse.Namespace(lr=1e-4), "epoch": [1, (2, None)]}
            torch.save(content, path, _use_new_zipfile_serialization=False)
        path.write_bytes(mutate(path.read_bytes(), rng))
        found = weights.open_weights(path, ["model"]).tensors()
        assert all(isinstance(value, torch.Tensor) for value in found.values())

    def codes(self, rng: random.Random) -> None:
        """Values are checked against the vocabulary; codes that stay inside it cannot be told from others."""
        folder = self.root / "codes"
        folder.mkdir(exist_ok=True)
        about = {"num_images": 6, "num_augmentations": 2, "num_tokens": 8, "codebook_size": 20, "classes": ["a", "b"]}
        (folder / "meta.json").write_text(json.dumps({**about, "tokenizer": None}))
        np.save(folder / "codes.npy", np.random.default_rng(0).integers(0, 20, (6, 2, 8)).astype(np.uint16))
        np.save(folder / "labels.npy", np.array([0, 1, 0, 1, 0, 1]))
        victim = folder / rng.choice(("meta.json", "codes.npy", "labels.npy"))
        victim.write_bytes(mutate(victim.read_bytes(), rng))
        store = CodeStore(folder)
        for index in range(len(store)):
            item = store[index]
            assert item["codes"].dtype == np.int64 and 0 <= item["codes"].min() <= item["codes"].max()
            assert item["codes"].max() < store.codebook_size and 0 <= item["label"] < len(store.classes)

    def pixels(self, rng: random.Random) -> None:
        """A packed file of images."""
        path = self.root / "pixels.npz"
        np.savez(path, arr_0=np.stack([COLOURS] * 3))
        path.write_bytes(mutate(path.read_bytes(), rng))
        blocks = np.concatenate(list(npz.stream(path, 2)))
        assert blocks.shape[1:] == COLOURS.shape
        assert blocks.dtype == np.uint8 and blocks.ndim == 4

    def settings(self, rng: random.Random) -> None:
        path = self.root / "settings.yaml"
        good = yaml.safe_dump({"model": {"image_size": 32}, "run": {"out": "x", "steps": 3}, "data": {"root": "x"}})
        wrong = rng.choice(("[1, 2]", "null", "1e999", "{}", "'text'", "!!python/object:os.system x", "*a", "${a"))
        text = good.replace(rng.choice(("32", "3", "x")), wrong, 1) if rng.random() < 0.5 else None
        path.write_bytes(text.encode() if text else mutate(good.encode(), rng))
        parsed = config.parse(TrainConfig, ["--config", str(path)])
        assert isinstance(parsed.model.image_size, int) and isinstance(parsed.run.steps, int)


NAMES = [name for name in vars(Kinds) if not name.startswith("_")]


def mutations(name: str, count: int, root: Path) -> None:
    refused = 0
    for number in range(count):
        try:
            with in_time():
                getattr(Kinds(root), name)(random.Random(f"{name}{number}"))
        except UserError as error:
            assert str(error).strip(), number
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name} ended in {error!r}") from error
    print(f"{name}: {refused} of {count} refused")
    assert refused >= count // 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_mutated_files(name: str, tmp_path: Path) -> None:
    mutations(name, 85, tmp_path)  # 595 in all


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_many_mutated_files(name: str, tmp_path: Path) -> None:
    mutations(name, 850, tmp_path)


FOREIGN = {
    "empty": b"", "zeros": bytes(5000), "html": b"<html>404</html>", "json": b'{"model": {}}', "png": encoded(RGB),
    "text": b"version https://git-lfs.github.com/spec/v1\n", "npy": b"\x93NUMPY\x01\x00v\x00{'descr'",
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(99), "gguf": b"GGUF\x03" + bytes(99), "gzip": b"\x1f\x8b\x08" + bytes(99),
    "pickle": pickle.dumps({"model": [1]}), "number": pickle.dumps(7), "half a zip": b"PK\x03\x04" + bytes(99),
    "header only": (1 << 40).to_bytes(8, "little") + b'{"a": 1}',
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", [*FOREIGN, "npz", "torchscript", "whole model", "half written"])
def test_foreign_files_of_weights(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    if name == "npz":
        np.savez(tmp_path / "x.npz", arr_0=COLOURS)
        path.write_bytes((tmp_path / "x.npz").read_bytes())
    elif name == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    elif name == "whole model":
        torch.save(torch.nn.Linear(2, 2), path)
    elif name == "half written":
        torch.save({"model": {"a": torch.zeros(9999)}}, path)
        path.write_bytes(path.read_bytes()[:9999])
    else:
        path.write_bytes(FOREIGN[name])
    with in_time(), pytest.raises(UserError) as caught:
        weights.open_weights(path, ["model"])
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


CALLS = {  # module, name, argument
    "shell": ("posix", "system", "touch {trap}"), "exec": ("builtins", "exec", "open({trap!r}, 'w')"),
    "old exec": ("__builtin__", "exec", "open({trap!r}, 'w')"), "popen": ("subprocess", "Popen", "touch {trap}"),
    "runpy": ("runpy", "run_path", "{trap}.py"), "import": ("importlib", "import_module", "antigravity"),
    # Not refused: they become inert objects.
    "numpy": ("numpy.f2py.crackfortran", "myeval", "open({trap!r}, 'w')"), "class": ("argparse", "FileType", "w"),
    "torch": ("torch.hub", "_load_local", "{trap}"), "method": ("pathlib", "Path.touch", "{trap}"),
}  # fmt: skip
INERT = ("numpy", "class", "torch", "method")
WAYS = {  # how a pickle calls a class or function; %s: its name, then its argument
    "reduce": b"c%s\n%s\nX%s\x85R", "inst": b"(X%si%s\n%s\n", "obj": b"(c%s\n%s\nX%so", "new": b"c%s\n%s\nX%s\x85\x81",
    "build": b"c%s\n%s\n)\x81}X\x01\0\0\0aX%ssb", "items": b"c%s\n%s\n)\x81(X%se",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pickle_is_called(name: str, way: str, zipped: bool, tmp_path: Path) -> None:
    """Each call stands beside good weights. It is refused, or read as data; the trap stays untouched."""
    trap = tmp_path / "ran"
    (tmp_path / "ran.py").write_text(f"open({str(trap)!r}, 'w')")
    module, function, argument = (text.format(trap=str(trap)).encode() for text in CALLS[name])
    argument = len(argument).to_bytes(4, "little") + argument
    call = WAYS[way] % ((argument, module, function) if way == "inst" else (module, function, argument))
    path, mark = tmp_path / "x.pt", b"X\x04\0\0\0mark"
    torch.save({"model": {"a": torch.ones(3)}, "args": "mark"}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    if zipped:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for record, data in records.items():
                archive.writestr(record, data.replace(mark, call) if record.endswith("data.pkl") else data)
    else:
        path.write_bytes(content.replace(mark, call))
    with in_time():
        if name in INERT:
            assert torch.equal(weights.open_weights(path, ["model"]).tensors()["a"], torch.ones(3))
        else:
            with pytest.raises(UserError, match=f"refused: it names .*{function.decode()}"):
                weights.open_weights(path, ["model"])
    assert not trap.exists() and "antigravity" not in sys.modules


def test_a_header_that_ends_python_s_parser(tmp_path: Path) -> None:
    """Found by mutation: numpy passes on `tokenize.TokenError`, which is no ValueError."""
    with pytest.raises(UserError, match="damaged header"):
        Kinds(tmp_path).pixels(random.Random("pixels229"))
    with pytest.raises(evaluator.UnusableError, match="arr_0"):
        evaluator.open_images(next(tmp_path.glob("*.npz")), 2)


# ---------------------------------------------------------------------------------------------- what lies in them


def test_statistics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    good = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "good.npz", **good)
    assert evaluator.read_statistics(tmp_path / "good.npz")[0].shape == (3,)
    np.savez(tmp_path / "bad.npz", **{**good, "mu_s": np.array([0.0, np.nan, 0.0])})
    with pytest.raises(evaluator.UnusableError, match="NaN or infinity"):
        evaluator.read_statistics(tmp_path / "bad.npz")


def test_pixels_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pixels = np.full((1, 4, 4, 3), 7.0)
    pixels[0, 1, 1, 1] = np.nan
    np.savez(tmp_path / "x.npz", arr_0=pixels)
    with pytest.raises(UserError, match=r"outside 0\.\.255"):
        list(npz.stream(tmp_path / "x.npz", 1, any_type=True))
    with pytest.raises(UserError, match="expected uint8"):
        npz.header(tmp_path / "x.npz")


def _hostile(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for member, content in ((f"{name}.png", encoded(RGB)), (f"{name}.cls", b"0")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return write


@pytest.mark.parametrize("name", ["../escaped", "../../../escaped", "/tmp/survive-escaped", "a/../../escaped"])
def test_members_of_shards_cannot_leave_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    _hostile(name)(tmp_path / "shards" / "000000.tar")
    with pytest.raises(UserError, match="leads out"):
        unpack(tmp_path / "shards", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*escaped.png")) and not Path("/tmp/survive-escaped.png").exists()


def test_links_in_shards_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(RGB))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "000000.tar", "w") as archive:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    with pytest.raises(UserError, match="holds no images"):
        open_images(tmp_path / "shards", 8)


def test_names_inside_archives_of_weights_are_not_paths(tmp_path: Path) -> None:
    """Nothing of a .pt or .npz is ever written to disk under a name it brings along."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("../../escaped/data.pkl", b"\x80\x02}q\x00.")
    with suppress(UserError):
        weights.read(tmp_path / "x.pt")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.pt"] and not list(tmp_path.parent.glob("escaped"))


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for index in range(4):
        (tmp_path / "images" / "a" / f"{index}.png").write_bytes(encoded(RGB))
    pack(tmp_path / "images", tmp_path / "shards")
    tar = next((tmp_path / "shards").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2 - 100])
    with pytest.raises(UserError, match="cannot be read"):
        open_images(tmp_path / "shards", 8)
