"""OpenMoji's drawings as an image folder: classes, held-out drawings, the same files every time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from studies import emoji
from studies.emoji import EmojiConfig


@pytest.mark.parametrize(("name", "label"), [
    ("1F600", "face"), ("1F1E6-1F1E8", "flag"), ("1F408", "animal"), ("1F34E", "food"), ("270C", "symbol"),
    ("1F468-200D-1F33E", "person"), ("1F697", "travel"), ("1F4A1", "object"), ("1F44D", "hand"),
    ("1F44D-1F3FB", None), ("E000", None), ("notes", None),
])  # fmt: skip
def test_the_first_code_point_decides_the_class(name: str, label: str | None) -> None:
    assert emoji.class_of(name) == label


def test_a_tenth_of_the_drawings_is_held_out() -> None:
    names = [path.stem for path in emoji.drawings()]
    held_out = [name for name in names if emoji.is_held_out(name)]
    assert (len(names) - len(held_out), len(held_out)) == (1861, 222)
    assert set(map(emoji.class_of, held_out)) == set(emoji.CLASSES)


def test_drawings_are_rendered_on_white() -> None:
    [face] = [path for path in emoji.drawings() if path.stem == "1F600"]
    data = emoji.render(face, 64)
    assert hashlib.sha256(data).digest() == hashlib.sha256(emoji.render(face, 64)).digest()
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (64, 64, 3) and (pixels[0, 0] == 255).all()
    assert pixels[20, 32, 0] > 200 and pixels[20, 32, 2] < 120  # yellow


def test_of_drawings_that_look_the_same_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceuta's flag is Spain's; by their names one would be held out and the other trained on."""
    same = [path for path in emoji.drawings() if path.stem in ("1F1EA-1F1E6", "1F1EA-1F1F8")]
    assert len(same) == 2 and len({emoji.is_held_out(path.stem) for path in same}) == 2
    monkeypatch.setattr(emoji, "drawings", lambda: same)
    emoji.make(EmojiConfig(out=str(tmp_path / "made"), image_size=32))
    assert [path.stem for path in (tmp_path / "made").rglob("*.png")] == ["1F1EA-1F1E6"]


def test_the_folder_is_made_once_and_other_files_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [path for path in emoji.drawings() if path.stem in ("1F600", "1F408", "1F697")]
    monkeypatch.setattr(emoji, "drawings", lambda: few)
    options = EmojiConfig(out=str(tmp_path / "made"), image_size=32)
    assert emoji.make(options) and not emoji.make(options)
    assert len(list((tmp_path / "made").rglob("*.png"))) == 3
    assert "CC BY-SA 4.0" in (tmp_path / "made" / "LICENSE.md").read_text()
    with pytest.raises(UserError, match="other files"):
        emoji.make(EmojiConfig(out=str(tmp_path / "made"), image_size=16))
