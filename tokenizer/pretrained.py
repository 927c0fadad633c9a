"""Pretrained vision transformers from timm, for teachers and as initialisation of ViT parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.config import lookup
from common.errors import UserError
from common.meta import on_meta
from tokenizer.config import BackboneConfig, TrainConfig
from tokenizer.layers.vit import Vit
from tokenizer.model import Tokenizer

__all__ = ["check_teacher", "load_timm", "start_from"]


def load_timm(name: str, weights: str | None, otherwise: str, **options: Any) -> nn.Module:
    """timm's model `name` with its trained weights, from the file `weights` or timm's cache, without a head.

    `options` such as `img_size` and `patch_size` make timm resample its positions and patches; `num_classes` keeps a
    head of that width.

    Raises: UserError where the weights are missing or do not fit; its text ends with `otherwise`, the alternative.
    """
    import timm

    try:
        local = {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
        return timm.create_model(name, pretrained=not on_meta(), **{"num_classes": 0, **local, **options})
    except Exception as error:  # timm and the hub raise many types for a missing file
        where = repr(weights) if weights else "timm's cache"
        known = timm.get_pretrained_cfg(name)
        repository = known.hf_hub_id if known else f"timm/{name}"  # one file can serve several names
        raise UserError(
            f"the weights of {name!r} cannot be read from {where} ({type(error).__name__}); "
            f"get them with 'hf download {repository}', or {otherwise}"
        ) from error


def start_from(tokenizer: Tokenizer, config: BackboneConfig) -> None:
    """Copy a backbone's weights into the ViTs of the parts named, resampled to their patches and grids.

    Raises: UserError where the weights are missing, or a part is not a ViT or has another size.
    """
    found = {name: _vit(getattr(tokenizer, name, None)) for name in config.parts}
    wrong = [name for name, vit in found.items() if vit is None]
    if wrong:
        raise UserError(f"backbone.parts names {', '.join(wrong)}, which is not a dino_vit; set backbone.parts=[...]")
    for name, vit in found.items():
        patch = getattr(tokenizer.config, name)["patch"]
        given = config.model, config.weights
        if name == "decoder" and config.decoder_model:
            given = config.decoder_model, config.decoder_weights
        trained = load_timm(
            *given, "pass backbone.weights=FILE, or start untrained with backbone=null",
            img_size=tokenizer.image_size, patch_size=patch,
        ).state_dict()  # fmt: skip
        own = vit.state_dict()
        misfits = [key for key in own if key not in trained or trained[key].shape != own[key].shape]
        if misfits:
            raise UserError(
                f"{given[0]!r} does not fit model.{name}: {len(misfits)} tensors differ, first {misfits[0]}; "
                "set its width, layers and heads to the backbone's, or another backbone.model"
            )
        vit.load_state_dict({key: trained[key] for key in own})


def check_teacher(config: TrainConfig) -> None:
    """Raises: UserError when the tokenizer's own teacher would guide training without trained weights."""
    guided = [name for name, given in config.regularizers.items() if "teacher" in given and not given["teacher"]]
    own = config.model.teacher
    if not guided or config.init or not own or not lookup("tokenizer.teachers:TEACHERS", own["name"]).untrained:
        return
    if not config.backbone or "teacher" not in config.backbone.parts:
        raise UserError(
            f"regularizers.{guided[0]} learns from model.teacher, which would be untrained; let a backbone start it "
            f"(backbone.parts=[...,teacher]) or use another (regularizers.{guided[0]}.teacher.name=efficientnet_lite0)"
        )


def _vit(part: nn.Module | None) -> Vit | None:
    for inside in ("vit", "net"):  # encoder and decoder, teacher
        if isinstance(getattr(part, inside, None), Vit):
            return getattr(part, inside)
    return None
