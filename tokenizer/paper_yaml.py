"""Reads RobusTok's own YAML files: flat keys of its trainers become a config of ours. Nothing here imports torch.

Keys that a file leaves out are as in configs/main-train.yaml, or in configs/post-train.yaml when it has a `pair_set`.
RobusTok counts epochs, we count steps: an epoch is 1,281,167 images (200,000 pairs) over the batch size. `--dry-run`
shows the steps.
Source: RobusTok, xqgan_train.py and xqgan_post_train.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import merge, plain, read_yaml
from common.errors import UserError, nearest

__all__ = ["from_robustok"]

CONFIGS = Path(__file__).parents[1] / "configs"
IMAGES, PAIRS = 1_281_167, 200_000
THEIRS = {"cloud_save_path", "codebook_embed_dim", "enc_type", "vq_model"}  # only their files have these
VITS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
CONTRASTIVE, NOISE = "regularizers.contrastive", "regularizers.perturbation"

RENAMED = {
    "global_batch_size": "data.batch_size", "num_workers": "data.workers", "val_data_path": "val_root",
    "cloud_save_path": "run.out", "global_seed": "run.seed", "mixed_precision": "run.precision",
    "ckpt_every": "run.checkpoint_every", "log_every": "log.every", "image_size": "model.image_size",
    "num_latent_tokens": "model.layout.num_tokens", "num_latent_code": "model.layout.num_tokens",
    "beta1": "optim.beta1", "beta2": "optim.beta2", "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.max_grad_norm", "reconstruction_loss": "losses.recon.name",
    "reconstruction_weight": "losses.recon.weight", "perceptual_weight": "losses.perceptual.weight",
    "disc_weight": "adversary.weight", "disc_adaptive_weight": "adversary.adaptive", "disc_loss": "adversary.loss",
    "disc_weight_decay": "adversary.optim.weight_decay", "lecam_loss_weight": "adversary.lecam.weight",
    "sem_loss_weight": f"{CONTRASTIVE}.weight", "sem_loss_scale": f"{CONTRASTIVE}.scale",
    "guide_type_1": f"{CONTRASTIVE}.feature", "alpha": f"{NOISE}.alpha", "beta": f"{NOISE}.beta",
    "delta": f"{NOISE}.delta", "end_ratio": f"{NOISE}.end_ratio",
}  # fmt: skip
CHOICES: dict[str, dict[Any, dict[str, Any]]] = {  # key: value: what it means here
    "disc_type": {
        "dinodisc": {"adversary.discriminator": {"name": "dino"}},
        "patchgan": {"adversary.discriminator": {"name": "patchgan"}},
    },
    "semantic_guide": {"dinov2": {}, "none": {CONTRASTIVE: None, "model.teacher": None}},
    "ema": {True: {"ema_decay": 0.9999}, False: {"ema_decay": 0.0}},
    "lr_scheduler": {"cosine": {}, "none": {"optim.schedule": "constant", "adversary.optim.schedule": "constant"}},
    "enc_tuning_method": {
        "full": {}, "lora": {"lora.encoder": 8}, "frozen": {"freeze": ["encoder", "quant_conv", "quantizer"]},
    },
    "dec_tuning_method": {
        "full": {}, "lora": {"lora.decoder": 8}, "frozen": {"freeze": ["decoder", "post_quant_conv"]},
    },
}  # fmt: skip
ONLY: dict[str, Any] = {  # keys with one supported value: no released configuration has another
    "enc_type": "dinov2", "dec_type": "dinov2", "vq_model": "VQ-16", "abs_pos_embed": True, "codebook_l2_norm": True,
    "half_sem": False, "lfq": False, "clip_norm": False, "codebook_weight": 1.0, "entropy_loss_ratio": 0.0,
    "dropout_p": 0.0, "gen_loss": "hinge", "disc_reinit": 0, "norm_type": "bn", "aug_prob": 1.0, "aug_fade_steps": 0,
    "gradient_accumulation_steps": 1, "dataset": "imagenet", "compile": False,
}  # fmt: skip
WITHOUT_EFFECT = {  # a run here has one folder and resumes from it, so these are ignored
    "results_dir", "no_local_save", "finetune", "debug_disc", "vis_every", "save_best", "data_face_path",
    "sample_folder_dir", "reconstruction_folder_dir", "guide_type_2",
}  # fmt: skip
TOGETHER = {  # keys that are read together with others, by the functions below
    "data_path", "pair_set", "vq_ckpt", "encoder_model", "decoder_model", "codebook_size", "codebook_embed_dim",
    "commit_loss_beta", "product_quant", "v_patch_nums", "share_quant_resi", "codebook_drop", "start_drop",
    "detail_guide", "detail_loss_weight", "detail_loss_scale", "epochs", "lr", "disc_lr", "disc_epoch_start",
    "anneal_start", "anneal_end",
}  # fmt: skip


def from_robustok(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one of RobusTok's mappings into a complete config; other mappings are returned unchanged.

    Raises: UserError for a key RobusTok does not have, or a value that is not built here.
    """
    if not THEIRS & raw.keys():
        return dict(raw)
    written, raw = raw, plain(raw)
    known = {*RENAMED, *CHOICES, *ONLY, *WITHOUT_EFFECT, *TOGETHER}
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise UserError(f"unknown key {key!r} in a RobusTok config{nearest(key, known)}")
        if value is None:
            continue
        if key in RENAMED:
            changes[RENAMED[key]] = written[key]
        elif key in CHOICES:
            changes |= {k: v for k, v in _one_of(key, value, CHOICES[key]).items() if k != "freeze"}
        elif key in ONLY:
            _one_of(key, value, {ONLY[key]: None})
    post = "pair_set" in raw
    for part in (_data(raw, post), _quantizer(raw), _backbones(raw), _guides(raw), _lengths(raw, post)):
        changes |= part
    tuned = [CHOICES[key].get(raw.get(key), {}) for key in ("enc_tuning_method", "dec_tuning_method")]
    frozen = [name for method in tuned for name in method.get("freeze", [])]
    changes |= {"freeze": frozen} if frozen else {}
    given = read_yaml(CONFIGS / ("post-train.yaml" if post else "main-train.yaml"))
    dropped = {key for key in changes if any(key.startswith(f"{off}.") and changes[off] is None for off in changes)}
    for dotted, value in changes.items():
        if dotted not in dropped:
            given = merge(given, _nested(dotted, value))
    return given


def _one_of(key: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    if value not in choices:
        expected = " or ".join(str(choice) for choice in choices)
        raise UserError(f"RobusTok's {key} got {value!r}, which is not built here; expected {expected}")
    return choices[value]


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def _data(raw: Mapping[str, Any], post: bool) -> dict[str, Any]:
    """In post-training, `data_path` is the generated set, here data.pairs. There is no semantic guidance."""
    named = {"data_path": "data.pairs", "pair_set": "data.root"} if post else {"data_path": "data.root"}
    changes = {ours: raw[key] for key, ours in named.items() if key in raw}
    changes |= {CONTRASTIVE: None} if post else {}
    return changes | ({"init": raw["vq_ckpt"], "backbone": None} if raw.get("vq_ckpt") else {})


def _quantizer(raw: Mapping[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"name": "vq_hits"}
    part |= {"codebook_size": raw.get("codebook_size", 4096), "codebook_dim": raw.get("codebook_embed_dim", 64)}
    part |= {"commit_weight": raw.get("commit_loss_beta", 0.25)}
    scales, groups = list(raw.get("v_patch_nums", [16])), raw.get("product_quant", 1)
    changes: dict[str, Any] = {}
    if len(scales) > 1:
        part |= {"name": "multi_scale", "scales": scales, "smoothers": raw.get("share_quant_resi", 4)}
        if raw.get("codebook_drop"):
            changes["regularizers.codebook_drop"] = {
                "share": raw["codebook_drop"], "min_scales": raw.get("start_drop", 1),
            }  # fmt: skip
    if groups > 1:
        part = {"name": "product", "groups": groups, "part": part}
        changes["model.encoder.groups"] = groups
    return changes | {"model.quantizer": part}


def _backbones(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and pretrained weights of the ViTs. The teacher passes through quant_conv, so it is as wide."""
    changes: dict[str, Any] = {}
    for key, parts, weights in (
        ("encoder_model", ("encoder", "teacher"), "model"), ("decoder_model", ("decoder",), "decoder_model"),
    ):  # fmt: skip
        if key not in raw:
            continue
        size = next((VITS[size] for size in VITS if raw[key] == f"vit_{size}_patch14_dinov2.lvd142m"), None)
        if size is None:
            expected = f"vit_SIZE_patch14_dinov2.lvd142m with SIZE {', '.join(VITS)}"
            raise UserError(f"RobusTok's {key} got {raw[key]!r}, which is not built here; expected {expected}")
        sizes = dict(zip(("width", "layers", "heads"), size, strict=True))
        changes |= {f"model.{part}.{name}": number for part in parts for name, number in sizes.items()}
        changes |= {"model.z_channels": size[0]} if key == "encoder_model" else {}
        if not raw.get("vq_ckpt") and (key == "encoder_model" or raw[key] != raw.get("encoder_model")):
            changes[f"backbone.{weights}"] = raw[key]
    return changes


def _guides(raw: Mapping[str, Any]) -> dict[str, Any]:
    if raw.get("detail_guide", "none") == "none" or "pair_set" in raw:
        return {}
    guide = {"name": "contrastive", "teacher": {"name": "clip_openai_vitb16"}, "feature": "patch", "group": "first"}
    weights = {"weight": raw.get("detail_loss_weight", 0.1), "scale": raw.get("detail_loss_scale", 1.0)}
    return {"regularizers.detail": guide | weights}


def _lengths(raw: Mapping[str, Any], post: bool) -> dict[str, Any]:
    """Epochs as steps, and learning rates: main training multiplies them by batch / 128."""
    batch, epochs = raw.get("global_batch_size", 1024), raw.get("epochs", 100 if post else 200)
    epoch, scale = (PAIRS if post else IMAGES) // batch, 1.0 if post else batch / 128
    judge = "adversary.optim"
    changes = {
        "run.steps": epochs * epoch, "optim.epoch_steps": epoch, "optim.warmup": epoch,
        f"{judge}.epoch_steps": epoch, f"{judge}.warmup": int(0.02 * epochs) * epoch,
        "adversary.start": raw.get("disc_epoch_start", 0) * epoch,
    }  # fmt: skip
    rates = {"lr": "optim.lr", "disc_lr": f"{judge}.lr"}
    changes |= {ours: float(raw[key]) * scale for key, ours in rates.items() if key in raw}
    if post or raw.get("beta") == 0:
        return changes | {NOISE: None}
    ends = {"anneal_start": raw.get("anneal_start", 200), "anneal_end": raw.get("anneal_end", 200)}
    return changes | {f"{NOISE}.{key}": value * epoch for key, value in ends.items()}
