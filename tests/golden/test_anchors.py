"""Codes that projects printed for photographs with their released weights. Needs the weights and the photographs.

Put both into one folder (default: checkpoints, or the environment variable ANCHORS): the weights as
`bash scripts/download_checkpoints.sh titok_L-32 onedpiece_L-256` names them, and the PNGs of assets/ in
bytedance/1d-tokenizer. Then `pytest tests/golden/test_anchors.py -rs`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer as tokenizers
from common.images import from_pixels, read_image

FOLDER = Path(os.environ.get("ANCHORS", "checkpoints"))
ENTRIES = json.loads((Path(__file__).parent / "data/anchors/titok.json").read_text())["entries"]
FILES = {"TiTok-L-32": "titok_L-32.bin", "One-D-Piece-L-256": "onedpiece_L-256.bin"}


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["model"].split()[0] for entry in ENTRIES])
def test_the_printed_codes(entry: dict) -> None:
    weights, image = FOLDER / FILES[entry["model"].split()[0]], FOLDER / Path(entry["image"]["path_in_repository"]).name
    missing = [str(path) for path in (weights, image) if not path.is_file()]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: released weights and photographs are not in the repository")
    pixels = np.asarray(read_image(image))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["image"]["sha256_of_the_uint8_pixels_HWC"]
    codes = tokenizers.load(weights).encode(from_pixels(torch.from_numpy(pixels)[None]))[0]
    # They were printed by a GPU run with TF32, which may round to another of two close codes.
    assert (codes == torch.tensor(entry["codes"])).float().mean() >= 0.95
