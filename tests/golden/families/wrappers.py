"""Miniature checkpoint files with the nesting of the released ones: which part is read, and that it arrives whole."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from autoregressive.models.gpt import GPT
from autoregressive.released import DROPPED, find_generator
from autoregressive.released import ORDER as GENERATOR_ORDER
from common.weights import open_weights
from tests.golden import models
from tests.golden.fixture import Fixture, Report
from tokenizer.released import ORDER as TOKENIZER_ORDER


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "wrappers"


def parts(fixture: Fixture) -> list[str]:
    return list(fixture.about["files"])


def check(fixture: Fixture, report: Report) -> None:
    expected = fixture.about["files"][fixture.part]
    path = fixture.path.with_name(fixture.part)
    is_tokenizer = any(key.startswith("quant") for key in expected["selected"])
    released = open_weights(path, (TOKENIZER_ORDER["ema"] if is_tokenizer else GENERATOR_ORDER["model"]))
    tensors = released.tensors()
    report.equal("part", released.part, expected["use_key"] or "")
    _compare(tensors, expected["selected"], report)
    if "tok_embeddings.weight" in tensors:
        _load(fixture, path, tensors, report)


def _compare(tensors: dict[str, Tensor], selected: dict[str, list], report: Report) -> None:
    report.equal("keys", list(tensors), list(selected))
    for key, (shape, dtype, total) in selected.items():
        got = [list(tensors[key].shape), str(tensors[key].dtype)]
        report.equal(f"{key} shape and dtype", got, [shape, f"torch.{dtype}"])
        report.equal(f"{key} sum", tensors[key].double().sum().item(), total)


def _load(fixture: Fixture, path: Path, tensors: dict[str, Tensor], report: Report) -> None:
    """A generator's file, through the front door's reader, into the model that its constructor arguments describe."""
    given = fixture.about["gpt_constructor_args"]
    config, read = find_generator(path, "model", {"heads": given["n_head"]})
    loaded = read()
    for name, value in {
        "codebook_size": given["vocab_size"], "num_tokens": given["block_size"], "num_classes": given["num_classes"],
        "positions": "learned",
    }.items():  # fmt: skip
        report.equal(f"recognised {name}", config[name], value)
    model = GPT(models.gpt(given, "learned"))
    model.load_state_dict(loaded, strict=True)
    dropped = sorted(key for key in tensors if DROPPED.fullmatch(key))
    report.equal("dropped", sorted(tensors.keys() - loaded.keys()), dropped)
