"""Every shipped tokenizer config resolves and builds, with the keys, shapes and parameters of the released files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import build, parse
from tests.golden.fixture import read_packed
from tokenizer.config import TrainConfig
from tokenizer.losses import LOSSES
from tokenizer.model import Tokenizer
from tokenizer.regularizers import REGULARIZERS
from tokenizer.released import from_released, to_released

ROOT = Path(__file__).parents[2]
CONTRACTS = read_packed(ROOT / "tests/golden/data/contracts.json.xz")
CONFIGS = sorted((ROOT / "configs/vq").glob("*.yaml"))
PARAMETERS = {
    "VQ_SS256": 136_073_227, "VQ_SB256": 232_399_627, "VQ_BL256": 621_637_131, "VQ_BL256_dino_disc": 621_637_131,
    "VQ_BL256_train_new": 621_637_131, "VQ_XLXXL256": 2_893_970_443, "VQ_SS256_2d": 135_548_427,
    "VQ_SB256_2d": 197_132_555, "VQ_BL256_2d": 491_410_187, "VQ_SS256_retok": 136_302_603,
    "VQ_SB256_retok": 232_686_347, "llamagen_VQ-16": 71_883_403, "llamagen_VQ-8": 70_109_835,
}
# S-S with another quantizer: without the codebook and the two convolutions around it, with those of 5, 14 and 16 -> 8.
REST = PARAMETERS["VQ_SS256"] - 16384 * 8 - (256 * 8 + 8) - (8 * 256 + 256)
OTHER_QUANTIZERS = {
    "VQ_SS256_fsq": REST + (256 * 5 + 5) + (5 * 256 + 256), "VQ_SS256_lfq": REST + (256 * 14 + 14) + (14 * 256 + 256),
    "VQ_SS256_kl": REST + (256 * 16 + 16) + (8 * 256 + 256),
}
OURS = {
    "VQ_SS256_retok_finetune": PARAMETERS["VQ_SS256_retok"], "VQ_SB256_retok_finetune": PARAMETERS["VQ_SB256_retok"],
    "VQ_SB256_nested_align": 218_236_939, "titok_SL256": 330_260_884, "onedpiece_S256": 51_949_920,
}


def read(name: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(ROOT / f"configs/vq/{name}.yaml"), "data.root=images"])


def on_meta(settings: TrainConfig) -> Tokenizer:
    with torch.device("meta"):
        return Tokenizer(settings.model)


def contract(name: str) -> dict[str, Any]:
    project = "retok" if name.endswith("_retok") else "llamagen" if name.startswith("llamagen") else "gigatok"
    return CONTRACTS[f"{project}_{name.removesuffix('_retok').removeprefix('llamagen_')}"]


def test_every_released_tokenizer_has_a_config() -> None:
    assert {path.stem for path in CONFIGS} >= set(PARAMETERS)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_parameters(name: str) -> None:
    expected = {**PARAMETERS, **OTHER_QUANTIZERS, **OURS}
    assert sum(p.numel() for p in on_meta(read(name)).parameters()) == expected[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_and_shapes(name: str) -> None:
    model = on_meta(read(name))
    own = model.state_dict()
    released = to_released(own, model.config.encoder["name"])
    expected = {key: shape for key, (shape, _) in contract(name)["keys"].items()}
    assert {key: list(value.shape) for key, value in released.items()} == expected
    assert from_released(released, model.config.encoder["name"]).keys() == own.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_training_parts_exist_and_fit(name: str) -> None:
    settings = read(name)
    assert {part["name"] for part in settings.losses.values()} <= LOSSES.keys()
    assert {part["name"] for part in settings.regularizers.values()} <= REGULARIZERS.keys()
    assert settings.adversary.weight == 0.5 and settings.optim.lr == 1e-4 and settings.optim.beta2 == 0.95
    if settings.adversary.discriminator["name"] == "patchgan":
        with torch.device("meta"):
            judge = build("tokenizer.discriminators:DISCRIMINATORS", settings.adversary.discriminator)
        assert sum(p.numel() for p in judge.parameters()) == 2_765_633
    if "semantic" in settings.regularizers:
        assert settings.model.decoder["semantic_head"] == {"depth": 3, "width": 768}


TABLE = """
VQ_SS256            small small 128 0.0   rot   0    patchgan 20000 15000 direct   1000000
VQ_SB256            small base  128 0.0   rot   0    patchgan 20000 15000 direct   2000000
VQ_BL256            base  large 256 0.0   rot   0    patchgan 20000 15000 direct   1000000
VQ_BL256_dino_disc  base  large 256 0.0   rot   0    dino     80000 15000 direct   1000000
VQ_BL256_train_new  base  large 256 0.005 plain 5000 patchgan 20000 15000 indirect 1000000
VQ_XLXXL256         xl    xxl   256 0.005 rot   5000 patchgan 20000 0     indirect 1500000
VQ_SS256_2d         small small 128 0.0   rot   0    patchgan 20000 15000 direct   1000000
VQ_SB256_2d         small base  128 0.0   rot   0    patchgan 20000 15000 direct   2000000
VQ_BL256_2d         base  large 256 0.005 rot   0    patchgan 20000 15000 direct   1000000
VQ_SS256_retok      small small 128 0.0   rot   0    patchgan 20000 0     indirect 1000000
VQ_SB256_retok      small base  128 0.0   rot   0    patchgan 20000 0     indirect 2500000
"""
"""Sizes, batch, entropy weight, rotation, warm-up, discriminator and its start, shortcut until and kind, steps."""


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=lambda row: row.split()[0])
def test_training_settings_are_the_papers(row: str) -> None:
    name, *expected = row.split()
    settings = read(name)
    sizes = [getattr(settings.model, side)["transformer"]["size"] for side in ("encoder", "decoder")]
    quantizer, shortcut = settings.model.quantizer, settings.regularizers.get("shortcut")
    got = [
        *sizes, settings.data.batch_size, quantizer["entropy_weight"], "rot" if quantizer["rotation"] else "plain",
        settings.optim.warmup, settings.adversary.discriminator["name"], settings.adversary.start,
        shortcut["until"] if shortcut else 0, "direct" if shortcut and shortcut["direct"] else "indirect",
        settings.run.steps,
    ]  # fmt: skip
    assert [str(value) for value in got] == expected
    o = settings.optim
    assert (o.lr, o.end_lr, o.beta1, o.beta2, o.weight_decay) == (1e-4, 1e-5, 0.9, 0.95, 1e-4)
    assert (o.schedule, o.max_grad_norm, o.decay_vectors) == ("cosine", 10.0, True)
    assert (quantizer["codebook_size"], quantizer["codebook_dim"], quantizer["commit_weight"]) == (16384, 8, 0.25)
    assert {key: (loss["name"], loss["weight"]) for key, loss in settings.losses.items()} == {
        "recon": ("l2", 1.0), "perceptual": ("lpips", 1.0),
    }  # fmt: skip
    adversary = settings.adversary
    assert (adversary.weight, adversary.loss, adversary.adaptive, adversary.penalty) == (0.5, "hinge", False, 0.0)
    assert adversary.lecam is None and settings.regularizers["semantic"]["weight"] == 0.5


@pytest.mark.parametrize("name", ["llamagen_VQ-16", "llamagen_VQ-8"])
def test_llamagens_training_settings(name: str) -> None:
    settings = read(name)
    o, adversary = settings.optim, settings.adversary
    assert (o.lr, o.beta1, o.beta2, o.weight_decay, o.max_grad_norm) == (1e-4, 0.9, 0.95, 0.0, 1.0)
    assert (o.schedule, o.warmup, settings.data.batch_size, settings.run.steps) == ("constant", 0, 128, 400_000)
    assert (adversary.start, adversary.weight, adversary.loss) == (20000, 0.5, "hinge")
    assert {loss["name"] for loss in settings.losses.values()} == {"l2", "lpips"} and not settings.regularizers
    assert settings.model.quantizer["entropy_weight"] == 0.0 and not settings.model.quantizer["rotation"]


def test_other_variants() -> None:
    assert read("VQ_SB256_retok").model.layout.extended == 480
    assert [read(f"VQ_{size}256_2d").model.encoder["transformer"]["qformer"] for size in ("SS", "SB", "BL")] == [
        True, False, False,
    ]  # fmt: skip
    continuous = read("VQ_SS256_kl")
    assert continuous.adversary.adaptive and continuous.losses["recon"]["name"] == "l1"
    # 1e-6 of the KL term beside sums over an image's values is this beside their means.
    assert continuous.model.quantizer["weight"] == pytest.approx(1e-6 / (3 * 256 * 256), rel=0.02)


def test_the_second_stage_trains_the_decoder_alone() -> None:
    for size in ("SS", "SB"):
        first, second = read(f"VQ_{size}256_retok"), read(f"VQ_{size}256_retok_finetune")
        assert first.model == second.model and second.freeze == ["encoder", "quant_conv", "quantizer"]
        assert second.init == second.adversary.init == first.run.out and second.adversary.start == 0
        assert second.regularizers.keys() == {"nested_dropout"}
        assert second.regularizers["nested_dropout"]["max_tokens"] == first.model.layout.num_tokens
    aligned = read("VQ_SB256_nested_align")
    assert aligned.regularizers.keys() == {"cross_length", "self_alignment"}


def test_the_semantic_head_may_be_left_out() -> None:
    path = str(ROOT / "configs/vq/VQ_SS256.yaml")
    words = ["--config", path, "data.root=x", "model.decoder.semantic_head=null", "regularizers.semantic=null"]
    assert sum(p.numel() for p in on_meta(parse(TrainConfig, words)).parameters()) == 129_252_619
