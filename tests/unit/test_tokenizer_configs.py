"""Every shipped tokenizer config resolves and builds, with the keys, shapes and parameters of the released files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common.config import build, parse
from tokenizer.config import TrainConfig
from tokenizer.legacy import from_released, to_released
from tokenizer.losses import LOSSES
from tokenizer.model import Tokenizer
from tokenizer.regularizers import REGULARIZERS

ROOT = Path(__file__).parents[2]
CONTRACTS = ROOT.parent / "shared/golden/contracts"
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


def read(name: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(ROOT / f"configs/vq/{name}.yaml"), "data.root=images"])


def on_meta(settings: TrainConfig) -> Tokenizer:
    with torch.device("meta"):
        return Tokenizer(settings.model)


def contract(name: str) -> Path:
    project = "retok" if name.endswith("_retok") else "llamagen" if name.startswith("llamagen") else "gigatok"
    return CONTRACTS / f"{project}_{name.removesuffix('_retok').removeprefix('llamagen_')}.json"


def test_every_released_tokenizer_has_a_config() -> None:
    assert {path.stem for path in CONFIGS} >= set(PARAMETERS)


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_parameters(name: str) -> None:
    expected = {**PARAMETERS, **OTHER_QUANTIZERS}
    assert sum(p.numel() for p in on_meta(read(name)).parameters()) == expected[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.skipif(not CONTRACTS.is_dir(), reason=f"no contracts in {CONTRACTS}")
def test_keys_and_shapes(name: str) -> None:
    model = on_meta(read(name))
    own = model.state_dict()
    released = to_released(own, model.config.encoder["name"])
    expected = {key: shape for key, (shape, _) in json.loads(contract(name).read_text())["keys"].items()}
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


def test_variants_state_only_their_differences() -> None:
    large = read("VQ_XLXXL256")
    assert (large.run.steps, large.data.batch_size, large.optim.warmup) == (1_500_000, 256, 5000)
    assert large.optim.max_grad_norm == 10.0 and large.optim.decay_vectors
    assert "shortcut" not in large.regularizers and large.regularizers["semantic"]["weight"] == 0.5
    new = read("VQ_BL256_train_new")
    assert not new.model.quantizer["rotation"] and new.regularizers["shortcut"]["until"] == 15000
    assert not new.regularizers["shortcut"]["direct"]
    retok = read("VQ_SB256_retok")
    assert retok.model.layout.extended == 480 and retok.adversary.start == 0
    assert read("VQ_BL256_dino_disc").adversary.discriminator["name"] == "dino"
    assert not read("VQ_BL256_2d").model.encoder["transformer"]["qformer"]


def test_the_semantic_head_may_be_left_out() -> None:
    path = str(ROOT / "configs/vq/VQ_SS256.yaml")
    words = ["--config", path, "data.root=x", "model.decoder.semantic_head=null", "regularizers.semantic=null"]
    assert sum(p.numel() for p in on_meta(parse(TrainConfig, words)).parameters()) == 129_252_619
