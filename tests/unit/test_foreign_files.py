"""Files that are damaged, or something else: each loads or is refused in one sentence, and none is executed."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tokenizer as tokenizers
from common.errors import UserError
from tests.unit.test_open_tokenizers import theirs

EACH = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undamaged files of one tokenizer, by suffix."""
    root, tensors = tmp_path_factory.mktemp("whole"), theirs("magvit2")
    torch.save({"state_dict": tensors}, root / "new.pt")
    torch.save({"state_dict": tensors}, root / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file({key: value.contiguous() for key, value in tensors.items()}, root / "plain.safetensors")
    return {path.suffix: path for path in root.iterdir()}


def cut(path: Path, dice: random.Random) -> bytes:
    content = path.read_bytes()
    return content[: int(len(content) * dice.random())]


def scratched(path: Path, dice: random.Random) -> bytes:
    """Some bytes of the beginning or the end, where the structure is, are others."""
    content = bytearray(path.read_bytes())
    for _ in range(dice.randint(1, 20)):
        place = dice.randrange(min(4000, len(content)))
        content[place if dice.random() < 0.5 else -1 - place] = dice.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("damage", [cut, scratched])
def test_damaged_files(
    whole: dict[str, Path], tmp_path: Path, damage: Callable[[Path, random.Random], bytes], suffix: str
) -> None:
    dice = random.Random(f"{damage.__name__}{suffix}")
    for number in range(EACH // 2):
        loads_or_says_why(tmp_path / f"{number}{suffix}", damage(whole[suffix], dice))


def loads_or_says_why(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        tokenizers.load(path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and path.name in str(error)


def others(dice: random.Random) -> Any:
    """The content of a file that is not a tokenizer, or not quite one."""
    tensors = theirs("magvit2")
    key = dice.choice(sorted(tensors))
    kind = dice.randrange(8)
    if kind == 0:
        return {**tensors, key: torch.zeros(dice.randrange(5))}
    if kind == 1:
        return {name: value for name, value in tensors.items() if name != key}
    if kind == 2:
        return {"model": {"state_dict": {"net": tensors}}}
    if kind == 3:
        return {f"layer{number}.conv.weight": torch.zeros(3) for number in range(dice.randrange(9))}
    if kind == 4:
        return dice.choice([None, 3, "text", [], [tensors], torch.zeros(3), {3: torch.zeros(3)}, {"state_dict": None}])
    if kind == 5:
        return {**tensors, key: dice.choice([None, "text", 3.0, {"a": torch.zeros(2)}])}
    if kind == 6:
        return {"tok_embeddings.weight": torch.zeros(4, 4), "layers.0.attention.wqkv.weight": torch.zeros(12, 4)}
    return {key: tensors[key]}


def test_files_of_something_else(tmp_path: Path) -> None:
    dice = random.Random(0)
    for number in range(EACH):
        torch.save(others(dice), tmp_path / "made.pt")
        loads_or_says_why(tmp_path / f"{number}.pt", (tmp_path / "made.pt").read_bytes())


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_files_with_code(tmp_path: Path) -> None:
    mark, dice = tmp_path / "executed", random.Random(1)
    for number in range(EACH):
        content = {**theirs("magvit2"), "extra": Trap(mark)} if dice.random() < 0.5 else Trap(mark)
        path = tmp_path / f"{number}.pt"
        if dice.random() < 0.3:
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=dice.random() < 0.5)
        loads_or_says_why(path, path.read_bytes())
    assert not mark.exists()


def test_the_nearest_family_is_named(tmp_path: Path) -> None:
    tensors = {key: value for key, value in theirs("ibq").items() if key != "quantize.embedding.weight"}
    torch.save(tensors, tmp_path / "half.pt")
    with pytest.raises(UserError, match=r"nearest is IBQ, without quantize\.embedding\.weight"):
        tokenizers.load(tmp_path / "half.pt")
