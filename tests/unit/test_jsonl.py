"""Tokens as RobusTok releases them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.token_lines import TokenLines


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_lines_are_read_by_number(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 50, (7, 6))
    lines = [{"class_id": index % 3, "tokens": row.tolist()} for index, row in enumerate(rows)]
    data = TokenLines(write(tmp_path / "x.jsonl", *lines), 50)
    assert (len(data), data.num_tokens, data.classes, data.meta) == (7, 6, ["0", "1", "2"], {"tokenizer": None})
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for index in (6, 0, 3):
        assert np.array_equal(data[index]["codes"], rows[index]) and data[index, 99]["label"] == index % 3
    assert TokenLines(tmp_path / "x.jsonl", 50, 4)[5]["codes"].tolist() == rows[5][:4].tolist()


@pytest.mark.parametrize(("line", "size", "message"), [
    ({"tokens": [1]}, 9, "line 1: no class_id"), ({"class_id": 1}, 9, "cannot be read"),
    ('{"class_id": 1, "tok', 9, "cannot be read"), ({"class_id": 1, "tokens": [9]}, 9, "expected 1 below 9"),
    ({"class_id": 1, "tokens": [9]}, None, "codebook_size=NUMBER"),
])  # fmt: skip
def test_damage_is_named(tmp_path: Path, line: object, size: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TokenLines(write(tmp_path / "x.jsonl", line), size)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file with tokens"):
        TokenLines(tmp_path / "x.jsonl", 9)
