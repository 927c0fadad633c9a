"""RobusTok's own YAML files are understood: the released ones mean what our shipped configs say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.config import parse
from common.errors import UserError
from tokenizer.config import TrainConfig
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.paper_yaml import from_robustok

ROOT = Path(__file__).parents[2]
# The keys and values of the released files.
MODEL = """
vq_model: VQ-16
ema: true
image_size: 256
enc_type: dinov2
dec_type: dinov2
encoder_model: vit_base_patch14_dinov2.lvd142m
decoder_model: vit_base_patch14_dinov2.lvd142m
codebook_size: 4096
codebook_embed_dim: 64
num_latent_tokens: 256
v_patch_nums: [16]
product_quant: 1
codebook_drop: 0.0
start_drop: 3
abs_pos_embed: true
semantic_guide: dinov2
guide_type_1: class
sem_loss_weight: 0.1
disc_type: dinodisc
disc_adaptive_weight: true
disc_weight_decay: 5.0e-4
aug_fade_steps: 0
lecam_loss_weight: 0.001
global_batch_size: 1024
lr_scheduler: cosine
weight_decay: 0.0
ckpt_every: 10000
alpha: 1.0
delta: 100
"""
MAIN = f"""{MODEL}
data_path: images
val_data_path: val
cloud_save_path: RobustTok
enc_tuning_method: full
dec_tuning_method: full
half_sem: false
lfq: false
disc_epoch_start: 56
epochs: 200
lr: 3.0e-5
disc_lr: 1.0e-4
save_best: true
anneal_start: 40
anneal_end: 120
beta: 0.1
"""
POST = f"""{MODEL}
data_path: pairs
pair_set: images
cloud_save_path: RobustTokp
vq_ckpt: RobustTok-half.pt
finetune: true
enc_tuning_method: frozen
disc_epoch_start: 0
debug_disc: true
vis_every: 100
epochs: 100
lr: 5.0e-5
disc_lr: 5.0e-5
anneal_start: 100
anneal_end: 100
beta: 0.0
"""


def read(tmp_path: Path, text: str, *words: str) -> TrainConfig:
    (tmp_path / "theirs.yaml").write_text(text)
    given = ["--config", str(tmp_path / "theirs.yaml"), *words]
    return parse(TrainConfig, given, aliases=TRAIN_FLAGS, translate=from_robustok)


def shipped(name: str, *words: str) -> TrainConfig:
    return parse(TrainConfig, ["--config", str(ROOT / f"configs/{name}.yaml"), *words])


def test_the_released_main_training_is_the_shipped_one(tmp_path: Path) -> None:
    theirs = read(tmp_path, MAIN, "optim.lr=2.4e-4")  # 3e-5 * 1024 / 128, but for its last digit
    assert read(tmp_path, MAIN).optim.lr == pytest.approx(2.4e-4)
    assert dataclasses.asdict(theirs) == dataclasses.asdict(
        shipped("main-train", "data.root=images", "val_root=val", "run.out=RobustTok")
    )


def test_the_released_post_training_is_the_shipped_one(tmp_path: Path) -> None:
    words = ("data.root=images", "data.pairs=pairs", "run.out=RobustTokp", "init=RobustTok-half.pt")
    assert dataclasses.asdict(read(tmp_path, POST)) == dataclasses.asdict(shipped("post-train", *words))


def changed(**keys: object) -> str:
    """The main training's file with other values."""
    kept = [line for line in MAIN.splitlines() if line.partition(":")[0] not in keys]
    return "\n".join([*kept, *(f"{key}: {value}" for key, value in keys.items())])


def test_what_is_optional_there_is_a_part_here(tmp_path: Path) -> None:
    several = {"v_patch_nums": [1, 2, 4, 16], "product_quant": 2, "codebook_drop": 0.1, "share_quant_resi": 2}
    config = read(tmp_path, changed(**several, dec_tuning_method="lora", detail_guide="clip"))
    part = config.model.quantizer["part"]
    assert (config.model.quantizer["groups"], part["name"], part["scales"]) == (2, "multi_scale", [1, 2, 4, 16])
    assert config.model.encoder["groups"] == 2 and part["smoothers"] == 2 and config.lora == {"decoder": 8}
    assert config.regularizers["codebook_drop"] == {"name": "codebook_drop", "share": 0.1, "min_scales": 3}
    assert config.regularizers["detail"]["teacher"]["name"] == "clip_openai_vitb16"
    config = read(tmp_path, changed(semantic_guide="none", beta=0.0))
    assert not config.regularizers and not config.model.teacher
    config = read(tmp_path, changed(enc_tuning_method="frozen", global_batch_size=256))
    assert config.freeze == ["encoder", "quant_conv", "quantizer"]
    assert config.run.steps == 200 * 5004 and config.optim.lr == pytest.approx(6e-5)


def test_encoder_and_decoder_may_have_different_widths(tmp_path: Path) -> None:
    small = "vit_small_patch14_dinov2.lvd142m"
    config = read(tmp_path, changed(decoder_model=small))
    assert config.backbone.model != config.backbone.decoder_model == small
    sizes = [(part["width"], part["heads"]) for part in (config.model.encoder, config.model.decoder)]
    assert sizes == [(768, 12), (384, 6)] and config.model.z_channels == config.model.teacher["width"] == 768


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("codebook_sise: 8", "did you mean 'codebook_size'"),
        ("semantic_guide: clip", "semantic_guide got 'clip'.*dinov2 or none"),
        ("enc_type: cnn", "enc_type got 'cnn'"),
        ("decoder_model: vit_base_patch16_224", "decoder_model got .*expected vit_SIZE_patch14_dinov2"),
    ],
)
def test_what_is_not_built_is_refused(tmp_path: Path, line: str, said: str) -> None:
    key, _, value = line.partition(": ")
    with pytest.raises(UserError, match=said):
        read(tmp_path, changed(**{key: value}))
