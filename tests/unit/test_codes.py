"""The code store: what goes in comes out, a broken or foreign one is refused, an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.codes import ChunkedWriter, CodeStore, import_npy
from common.data import stream
from common.errors import UserError

META: dict[str, Any] = {
    "num_images": 5, "num_augmentations": 3, "num_tokens": 4, "codebook_size": 100, "classes": ["a", "b"],
    "tokenizer": "0123", "crops": ["centre"],
}
CODES = np.random.default_rng(0).integers(0, 100, (5, 3, 4))
LABELS = [0, 1, 1, 0, 1]


def write(path: Path, **changes: Any) -> Path:
    writer = ChunkedWriter(path, {**META, **changes}, chunk=2)
    writer.prepare()
    for number in writer.missing():
        span = writer.images(number)
        writer.write(number, CODES[span.start : span.stop])
    return writer.finish(LABELS)


@pytest.mark.parametrize(("codebook_size", "dtype"), [(100, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_round_trip(tmp_path: Path, codebook_size: int, dtype: type) -> None:
    path = write(tmp_path / "store", codebook_size=codebook_size)
    assert sorted(file.name for file in path.iterdir()) == ["codes.npy", "labels.npy", "meta.json"]
    raw = np.load(path / "codes.npy")
    assert raw.dtype == dtype and np.array_equal(raw, CODES)
    store = CodeStore(path)
    assert len(store) == 5 and store.classes == ["a", "b"] and store.codebook_size == codebook_size
    assert np.array_equal(store[3]["codes"], CODES[3, 0]) and store[3]["codes"].dtype == np.int64
    assert [store[i]["label"] for i in range(5)] == LABELS
    assert np.array_equal(CodeStore(path, num_tokens=2)[1]["codes"], CODES[1, 0, :2])


def test_every_augmentation_is_drawn_and_the_draw_belongs_to_the_position(tmp_path: Path) -> None:
    store = CodeStore(write(tmp_path / "store"), seed=4)
    drawn = {tuple(store[2, position]["codes"]) for position in range(60)}
    assert drawn == {tuple(row) for row in CODES[2]}
    one = [torch.cat([batch["codes"] for batch in stream(store, 4, 0, 1, 9, 0, 6)])]
    two = [list(stream(store, 4, rank, 2, 9, 0, 6)) for rank in range(2)]
    joined = torch.cat([torch.cat((a["codes"], b["codes"])) for a, b in zip(*two, strict=True)])
    assert torch.equal(one[0], joined)


def test_an_interrupted_store_goes_on_and_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writer = ChunkedWriter(path, META, chunk=2)
    writer.prepare()
    writer.write(1, CODES[2:4])
    (writer.partial / "chunk-000000.partial").write_bytes(b"cut short")
    with pytest.raises(UserError, match="not a code store"):
        CodeStore(path)
    again = ChunkedWriter(path, META, chunk=2)
    again.prepare()
    assert again.missing() == [0, 2] and not again.is_finished()
    with pytest.raises(UserError, match="crops"):
        ChunkedWriter(path, {**META, "crops": ["ten"]}, chunk=2).prepare()
    again.write(0, CODES[:2])
    again.write(2, CODES[4:])
    again.finish(LABELS)
    assert np.array_equal(np.load(path / "codes.npy"), CODES)
    assert ChunkedWriter(path, META, chunk=5).is_finished()
    with pytest.raises(UserError, match="tokenizer"):
        ChunkedWriter(path, {**META, "tokenizer": "other"}, chunk=2).is_finished()


def test_wrong_codes_are_not_written(tmp_path: Path) -> None:
    writer = ChunkedWriter(tmp_path / "store", META, chunk=2)
    writer.prepare()
    for wrong in (CODES[:2] + 100, CODES[:2] - 100, CODES[:3], CODES[:2, :, :3]):
        with pytest.raises(ValueError, match="chunk 0"):
            writer.write(0, wrong)


def test_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    with pytest.raises(UserError, match="asked for 5"):
        CodeStore(path, num_tokens=5)
    (path / "meta.json").write_text(json.dumps({**META, "num_images": 6}))
    with pytest.raises(UserError, match="damaged"):
        CodeStore(path)
    (path / "meta.json").write_text(json.dumps({"num_images": 5}))
    with pytest.raises(UserError, match="lacks num_augmentations"):
        CodeStore(path)
    (path / "codes.npy").write_bytes((path / "codes.npy").read_bytes()[:150])
    with pytest.raises(UserError, match="damaged"):
        CodeStore(path)


@pytest.mark.parametrize("leading", [(), (1,)], ids=["gigatok", "llamagen"])
def test_import_of_the_papers_layout(tmp_path: Path, leading: tuple[int, ...]) -> None:
    codes, labels = tmp_path / "imagenet256_codes", tmp_path / "imagenet256_labels"
    codes.mkdir()
    labels.mkdir()
    for index in range(5):
        np.save(codes / f"{index}.npy", CODES[index].reshape(*leading, 3, 4))
        np.save(labels / f"{index}.npy", np.full(leading, LABELS[index]))
    store = CodeStore(import_npy(codes, labels, tmp_path / "store", 100))
    assert np.array_equal(np.load(tmp_path / "store/codes.npy"), CODES)
    assert store.labels.tolist() == LABELS and store.classes == ["0", "1"]
    with pytest.raises(UserError, match="below 50"):
        import_npy(codes, labels, tmp_path / "small", 50)
    (codes / "3.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"3\.npy"):
        import_npy(codes, labels, tmp_path / "broken", 100)
