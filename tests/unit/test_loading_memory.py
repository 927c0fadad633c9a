"""Loading a model takes little more memory than the model itself, and nothing before its weights are used."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import parse
from tokenizer.config import TrainConfig
from tokenizer.model import Tokenizer
from tokenizer.released import to_released

ROOT = Path(__file__).parents[2]
MEASURE = """
import json, sys, time
import torch
from tokenizer.released import find_tokenizer, load_tokenizer

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

def peak():  # not ru_maxrss, which begins with what the process that started this one had
    return kilobytes("VmHWM")

def now():
    return kilobytes("VmRSS")

torch.set_num_threads(1)
before, start = now(), time.perf_counter()
if "recognise" in sys.argv:
    find_tokenizer(sys.argv[1], "ema")
    print(json.dumps({"used": peak() - before, "seconds": time.perf_counter() - start}))
    sys.exit()
model = load_tokenizer(sys.argv[1], "ema", "cpu", None)
loaded = peak() - before
total = sum(value.sum().item() for value in model.state_dict().values())  # every weight is read once
own = sum(value.nbytes for value in model.state_dict().values())
print(json.dumps({"own": own, "loaded": loaded, "used": peak() - before, "total": total}))
"""


def released(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a released file, of the right sizes. Memory that is never touched is never taken."""
    settings = parse(TrainConfig, ["--config", str(ROOT / f"configs/vq/{name}.yaml"), "data.root=images"])
    with torch.device("meta"):
        state = to_released(Tokenizer(settings.model).state_dict(), "hybrid_1d")
    return {key: torch.empty(value.shape, dtype=value.dtype) for key, value in state.items()}


def write_sparse(content: dict[str, Any], path: Path) -> None:
    """A checkpoint whose weights are holes on the disk, so zeros."""
    with torch.serialization.skip_data():
        torch.save(content, path)


def write_sparse_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    header, end = {}, 0
    for key, value in tensors.items():
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end)


def state_checksums(path: Path) -> None:
    """Put the checksums of the holes, which read as zeros, into the archive's directory."""
    with zipfile.ZipFile(path) as archive, path.open("r+b") as file:
        at = archive.start_dir
        for info in archive.infolist():
            file.seek(at)
            header = file.read(46)
            assert header[:4] == b"PK\x01\x02"
            if "/data/" in info.filename:
                file.seek(at + 16)
                file.write(struct.pack("<I", checksum_of_zeros(info.file_size)))
            at += 46 + sum(struct.unpack("<3H", header[28:34]))


def checksum_of_zeros(size: int, chunk: bytes = bytes(1 << 20)) -> int:
    value = 0
    for start in range(0, size, len(chunk)):
        value = zlib.crc32(chunk[: size - start], value)
    return value


def measure(*words: object) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_recognition_reads_headers_only(suffix, tmp_path):
    """The largest released tokenizer; its `.ckpt` has an optimizer, too."""
    path, tensors = tmp_path / f"a{suffix}", released("VQ_XLXXL256")
    if suffix == ".safetensors":
        write_sparse_safetensors(tensors, path)
    elif suffix == ".pt":
        write_sparse({"model": tensors}, path)
    else:
        moments = {number: {"exp_avg": value} for number, value in enumerate(released("VQ_XLXXL256").values())}
        write_sparse({"state_dict": tensors, "optimizer_states": [{"state": moments}]}, path)
    assert path.stat().st_size > 3e9
    measured = measure(path, "recognise")
    print(f"{path.stat().st_size / 1e9:.2f} GB: {measured['used'] / 1e6:.0f} MB, {measured['seconds']:.2f} s")
    assert measured["used"] < 200e6 and measured["seconds"] < 5


@pytest.mark.parametrize("name", ["VQ_SS256", pytest.param("VQ_XLXXL256", marks=pytest.mark.slow)])
def test_memory(name, tmp_path):
    write_sparse({"model": released(name)}, tmp_path / "a.pt")
    state_checksums(tmp_path / "a.pt")
    measured = measure(tmp_path / "a.pt")
    assert measured["own"] >= 4 * 136_073_227
    assert measured["loaded"] < 0.3 * measured["own"]
    assert measured["own"] * 0.9 < measured["used"] < 1.2 * measured["own"]
