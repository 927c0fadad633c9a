"""The runner takes any model of a family: other vocabularies, widths, depths and lengths, under other file names."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden import runner
from tests.golden.families.contracts import build_from
from tests.golden.fixture import Fixture, read_packed
from tests.golden.test_golden import OPTIONAL

CONTRACTS = read_packed(runner.DATA / "contracts.json.xz")
GPT = {"dim": 96, "n_layer": 3, "n_head": 6, "vocab_size": 40, "block_size": 25, "num_classes": 7}
SMALL = {
    "image_size": 128, "conv_base_channels": 32, "vit_encoder": {"width": 192, "layers": 2, "heads": 3},
    "vit_decoder": {"width": 256, "layers": 4, "heads": 4},
}
VQ = {"codebook_size": 40, "codebook_embed_dim": 6, "out_inner_dim": 48, "distill_depth": 2}
VARIANTS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "learned": ("gpt1d_GPT-B", "resolved_config", GPT, {}),
    "rotary": ("llamagen_gpt_GPT-B", "resolved_config", GPT, {}),
    "captions": ("llamagen_gpt_GPT-XL_t2i", "resolved_config", {**GPT, "cls_token_num": 8, "caption_dim": 24}, {}),
    "random_orders": (
        "rar_RAR-B", "generator_config",
        {
            "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 200,
            "image_seq_len": 36, "condition_num_classes": 7,
        },
        {"codebook_size": 50},
    ),
    "one_dimension": (
        "gigatok_VQ_SS256", "model_init_args", {**VQ, "num_latent_tokens": 64}, {"reduced_dimensions": SMALL},
    ),
    "redundancy": (
        "retok_VQ_SS256", "model_init_args", VQ, {"reduced_dimensions": {**SMALL, "image_size": 256}},
    ),
    "two_dimensions": ("gigatok_VQ_SS256_2d", "model_init_args", VQ, {"reduced_dimensions": SMALL}),
    "another_size": ("gigatok_VQ_SS256", "model_init_args", {"encoder_size": "base", "decoder_size": "large"}, {}),
    "convolutions": (
        "llamagen_VQ-16", "resolved_config",
        {"codebook_size": 40, "codebook_embed_dim": 5, "encoder_ch_mult": [1, 2, 2], "decoder_ch_mult": [1, 2, 2]},
        {"reduced_dimensions": {"conv_base_channels": 64}},
    ),
    "small_vit": (
        "robustok_main_train", "constructor_args",
        {
            "codebook_size": 48, "codebook_embed_dim": 6, "encoder_model": "vit_small_patch14_dinov2.lvd142m",
            "decoder_model": "vit_small_patch14_dinov2.lvd142m",
        },
        {},
    ),
    "patches": ("disc_patchgan", "constructor_args", {"ndf": 24, "n_layers": 2}, {}),
    "style": ("disc_stylegan", "constructor_args", {"image_size": 64}, {}),
    "heads": ("disc_dino_heads", "constructor_args", {"ks": 7, "key_depths": [1, 3], "depth": 5}, {}),
}  # fmt: skip
"""Contract, where its arguments are, which of them change, and what changes beside them."""


def write(path: Path, about: dict[str, Any]) -> Fixture:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(about))
    return Fixture(path, path.parent.name)


def variant(name: str, folder: Path) -> dict[str, Any]:
    """A contract of our model of these arguments: the keys are its own, which holds the runner, not the model."""
    source, where, changed, beside = VARIANTS[name]
    about = copy.deepcopy(CONTRACTS[source]) | beside
    about[where] |= changed
    with torch.device("meta"):
        model, state = build_from(write(folder / f"contracts/{name}.json", about))
    about["keys"] = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    }
    about["num_parameters"] = sum(p.numel() for p in model.parameters())
    about["num_parameters_trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    names = {id(value) for value in model.parameters()}
    kept = zip(state, model.state_dict(keep_vars=True).values(), strict=True)
    about["buffers"] = [key for key, value in kept if id(value) not in names]
    return about


@pytest.mark.parametrize("name", VARIANTS)
def test_a_contract_of_other_sizes_runs_and_a_wrong_one_fails(name: str, tmp_path: Path) -> None:
    about = variant(name, tmp_path)
    assert about["num_parameters"] != CONTRACTS[VARIANTS[name][0]]["num_parameters"]
    outcome = runner.check(write(tmp_path / f"contracts/{name}.json", about))
    assert outcome.status == "pass", outcome.line()
    shape = next(shape for key, (shape, _) in reversed(about["keys"].items()) if key not in about["buffers"])
    shape[0] += 1
    assert runner.check(write(tmp_path / f"contracts/{name}.json", about)).status == "fail"


def test_a_stated_size_is_what_is_built(tmp_path: Path) -> None:
    """The released keys with an argument of another model fail: nothing is looked up by name."""
    for source, where, key, value in (
        ("gpt1d_GPT-B", "resolved_config", "n_layer", 11), ("rar_RAR-B", "generator_config", "hidden_size", 512),
        ("llamagen_VQ-16", "resolved_config", "codebook_size", 512),
        ("gigatok_VQ_SS256", "model_init_args", "encoder_size", "base"),
        ("disc_patchgan", "constructor_args", "ndf", 32),
    ):  # fmt: skip
        about = copy.deepcopy(CONTRACTS[source])
        about[where][key] = value
        outcome = runner.check(write(tmp_path / f"contracts/{source}.json", about))
        assert outcome.status == "fail", source




@pytest.mark.parametrize("source", sorted({path.stem for path in (runner.DATA / "tiny").glob("*.json")}))
def test_a_fixture_runs_under_any_name(source: str, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    copied = [source, *(["lpips"] if source == "losses" else [])]
    for place, stem in enumerate(copied):
        for path in (runner.DATA / "tiny").glob(f"{stem}.*"):
            shutil.copy(path, tmp_path / "tiny" / path.name.replace(stem, f"fixture_{place}", 1))
    found = [fixture for fixture in runner.find(runner.DATA, ("tiny",)) if fixture.path.stem in copied]
    outcomes = list(runner.run(tmp_path))
    assert len(outcomes) == len(found)
    passed = [each for each in outcomes if each.status == "pass"]
    skipped = [each for each in outcomes if each.status == "skip" and each.detail.startswith("OPTIONAL: ")]
    assert [each.line() for each in outcomes if each not in passed + skipped] == []
    assert len(skipped) == sum(fixture.name in OPTIONAL for fixture in found)
