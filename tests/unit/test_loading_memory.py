"""Loading a model takes little more memory than the model itself, and nothing before its weights are used."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from common.config import parse
from tokenizer.config import TrainConfig
from tokenizer.model import Tokenizer
from tokenizer.released import to_released

ROOT = Path(__file__).parents[2]
MEASURE = """
import json, sys
import torch
from tokenizer.released import load_tokenizer

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

def peak():  # not ru_maxrss, which begins with what the process that started this one had
    return kilobytes("VmHWM")

def now():
    return kilobytes("VmRSS")

torch.set_num_threads(1)
before = now()
model = load_tokenizer(sys.argv[1], "ema", "cpu", None)
loaded = peak() - before
total = sum(value.sum().item() for value in model.state_dict().values())  # every weight is read once
own = sum(value.nbytes for value in model.state_dict().values())
print(json.dumps({"own": own, "loaded": loaded, "used": peak() - before, "total": total}))
"""


def write_sparse(name: str, path: Path) -> None:
    """A released file of the right size whose weights are holes on the disk, so zeros."""
    settings = parse(TrainConfig, ["--config", str(ROOT / f"configs/vq/{name}.yaml"), "data.root=images"])
    with torch.device("meta"):
        state = to_released(Tokenizer(settings.model).state_dict(), "hybrid_1d")
    # Memory that is never touched is never taken.
    tensors = {key: torch.empty(value.shape, dtype=value.dtype) for key, value in state.items()}
    with torch.serialization.skip_data():
        torch.save({"model": tensors}, path)
    state_checksums(path)


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


@pytest.mark.parametrize("name", ["VQ_SS256", pytest.param("VQ_XLXXL256", marks=pytest.mark.slow)])
def test_memory(name, tmp_path):
    write_sparse(name, tmp_path / "a.pt")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.pt")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["own"] >= 4 * 136_073_227
    assert measured["loaded"] < 0.3 * measured["own"]
    assert measured["own"] * 0.9 < measured["used"] < 1.2 * measured["own"]
