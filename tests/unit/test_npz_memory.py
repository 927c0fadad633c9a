"""Memory does not grow with the images of a packed file."""

from __future__ import annotations

import tracemalloc

import numpy as np

from common import npz
from common.npz import NpzWriter


def test_writing_and_reading_an_npz_holds_a_few_images_at_a_time(tmp_path):
    """64 MB of images pass through less than 8 MB of memory, in both directions."""
    block = np.zeros((16, 128, 128, 3), np.uint8)
    count = 64 * 2**20 // block[0].size // 16 * 16
    tracemalloc.start()
    writer = NpzWriter(tmp_path / "x.npz", count, (128, 128))
    for _ in range(count // 16):
        writer.write(block)
    writer.close()
    assert sum(len(part) for part in npz.stream(tmp_path / "x.npz", 16)) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
