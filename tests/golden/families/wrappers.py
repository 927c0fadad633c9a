"""Miniature checkpoint files with the nesting of the released ones: which part is read, and that it arrives whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from autoregressive.models.gpt import GPT
from autoregressive.released import DROPPED, find_generator
from autoregressive.released import ORDER as GENERATOR_ORDER
from common.config import resolve
from common.hub import find
from common.token_lines import TokenLines
from common.weights import open_weights
from tests.golden import models
from tests.golden.fixture import Fixture, Report
from tokenizer.config import TokenizerConfig
from tokenizer.families.titok import stated
from tokenizer.released import ORDER as TOKENIZER_ORDER


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "wrappers"


def parts(fixture: Fixture) -> list[str]:
    return [*fixture.about["files"], *fixture.about.get("code_lists", ())]


def check(fixture: Fixture, report: Report) -> None:
    path = fixture.path.parent / fixture.part
    if fixture.part in fixture.about.get("code_lists", {}):
        _codes(path, fixture.about["code_lists"][fixture.part], report)
        return
    expected = fixture.about["files"][fixture.part]
    is_tokenizer = any(key.startswith("quant") for key in expected["selected"])
    released = open_weights(path, (TOKENIZER_ORDER["ema"] if is_tokenizer else GENERATOR_ORDER["model"]))
    tensors = released.tensors()
    report.equal("part", released.part, expected["use_key"] or "")
    _compare(tensors, expected["selected"], report)
    if "config_means" in expected:
        _compare_config(path.with_name("config.json"), expected["config_means"], report)
    if path.parent.name in ("ema_model", "unwrapped_model"):  # of a training run: the folder stands for its average
        weights = {"ema_model": "ema", "unwrapped_model": "model"}[path.parent.name]
        found = find(path.parents[2], TOKENIZER_ORDER[weights], lambda _: True)
        _compare(found.read(), expected["selected"], report)
    if "tok_embeddings.weight" in tensors:
        _load(fixture, path, tensors, report)


def _compare(tensors: dict[str, Tensor], selected: dict[str, list], report: Report) -> None:
    report.equal("keys", list(tensors), list(selected))
    for key, (shape, dtype, total) in selected.items():
        got = [list(tensors[key].shape), str(tensors[key].dtype)]
        report.equal(f"{key} shape and dtype", got, [shape, f"torch.{dtype}"])
        report.equal(f"{key} sum", tensors[key].double().sum().item(), total)


def _compare_config(path: Path, means: dict[str, Any], report: Report) -> None:
    """What a hub folder's `config.json` says, absent keys included."""
    config = resolve(TokenizerConfig, stated(json.loads(path.read_text())), where="model")
    encoder, decoder, quantizer = config.encoder, config.decoder, config.quantizer
    got = {
        "encoder_width_layers_heads": [encoder["width"], encoder["layers"], encoder["heads"]],
        "decoder_width_layers_heads": [decoder["width"], decoder["layers"], decoder["heads"]],
        "num_latent_tokens": config.layout.num_tokens, "is_legacy": encoder["reread"],
        "token_size": quantizer.get("codebook_dim", quantizer.get("dim")),
        "quantize_mode": {"vq": "vq", "kl": "vae"}[quantizer["name"]],
        "pixel_decoder_included": decoder["proxy"] is not None,
        "codebook_size": quantizer.get("codebook_size"), "use_l2_norm": quantizer.get("l2_norm"),
    }
    report.equal("config", {key: got[key] for key in means}, means)


def _codes(path: Path, expected: dict[str, Any], report: Report) -> None:
    """A list of codes, as the generator's training reads it."""
    codes = TokenLines(path, 1024)
    report.equal("classes", [codes[row]["label"] for row in range(len(codes))], expected["class_ids"])
    report.equal("sums", [int(codes[row]["codes"].sum()) for row in range(len(codes))], expected["tokens_sum"])
    report.equal("length", codes.num_tokens, expected["tokens_per_row"])


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
