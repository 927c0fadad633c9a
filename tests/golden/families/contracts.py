"""Every released configuration: our model has exactly those keys, shapes, dtypes and parameters, and is recognised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.models.gpt import GPT, SIZES
from autoregressive.models.rar import RAR
from autoregressive.released import generator_config
from common.config import build, resolve
from common.networks.lpips import LPIPSNetwork
from tests.golden import models
from tests.golden.families import discriminators
from tests.golden.fixture import Fixture, Report, Skip
from tokenizer.config import TokenizerConfig
from tokenizer.discriminators.dino import DinoDiscriminator, FrozenDino
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.discriminators.stylegan import StyleGanDiscriminator
from tokenizer.families import family_of
from tokenizer.layers.vit import VitConfig
from tokenizer.model import Tokenizer
from tokenizer.released import to_released
from tokenizer.training_pass import TrainingPass


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "contracts"


def check(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    with torch.device("meta"):
        model, state = build_from(fixture)
        _recognise(fixture, model, report)
    report.equal("keys", {key: list(value.shape) for key, value in state.items()}, shapes(about))
    report.equal(
        "dtypes", {key: str(value.dtype) for key, value in state.items()},
        {key: f"torch.{dtype}" for key, (_, dtype) in about["keys"].items()},
    )  # fmt: skip
    report.equal("parameters", sum(p.numel() for p in model.parameters()), about["num_parameters"])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not isinstance(model, FrozenDino | LPIPSNetwork):  # these are frozen by those who use them
        report.equal("trainable", trainable, about["num_parameters_trainable"])
    own = {id(value) for value in model.buffers()}
    buffers = sorted(key for key, value in state.items() if id(value) in own)
    report.equal("buffers", buffers, sorted(about["buffers"]))


def _titok(about: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    model = Tokenizer(models.titok(about["constructor_args"], about))
    if "pixel_decoder.conv_in.weight" in about["keys"]:
        TrainingPass(model, ("encoder", "quant_conv", "quantizer"))  # frozen in the second stage
    return model, to_released(model.state_dict(keep_vars=True), "titok")


def _maskgit(about: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    model = Tokenizer(models.maskgit(about["resolved_config"], about))
    return model, to_released(model.state_dict(keep_vars=True), "maskgit")


def _rar(about: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    given = about["constructor_args"]
    model = RAR(models.rar(given["generator"], given["vq_model"]["codebook_size"]))
    return model, model.state_dict(keep_vars=True)


def _text_aware(about: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    raise Skip("OPTIONAL: TA-TiTok's decoder reads CLIP features of a caption, which no job here has")


OPEN = {"titok": _titok, "onedpiece": _titok, "maskgit_vqgan": _maskgit, "rar": _rar, "tatitok": _text_aware}
"""By project."""


def shapes(about: dict[str, Any]) -> dict[str, list[int]]:
    return {key: shape for key, (shape, _) in about["keys"].items()}


def build_from(fixture: Fixture) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model a contract describes, and its state dict under the released names."""
    about, judge = fixture.about, discriminators.kind(fixture)
    if about.get("project") in OPEN:
        return OPEN[about["project"]](about)
    convolutions = "encoder_ch_mult" in about.get("resolved_config", {})
    if "model_class" in about or convolutions or "encoder_model" in about.get("constructor_args", {}):
        config = _tokenizer(about)
        model: nn.Module = Tokenizer(config)
        return model, to_released(model.state_dict(keep_vars=True), config.encoder["name"])
    if "generator_config" in about:
        model = RAR(models.rar(about["generator_config"], about["codebook_size"]))
    elif "n_layer" in about.get("resolved_config", {}):
        model = _gpt(about)
    elif "lin0.model.1.weight" in fixture.keys:
        model = LPIPSNetwork(channels=[shapes(about)[f"lin{stage}.model.1.weight"][1] for stage in range(5)])
    elif judge == "patchgan":
        given = about["constructor_args"]
        model = PatchGan(PatchGan.Config(channels=given["ndf"], layers=given["n_layers"]))
    elif judge == "backbone":
        backbone = _backbone(shapes(about))
        return backbone, {key.removeprefix("vit."): value for key, value in backbone.state_dict(keep_vars=True).items()}
    elif judge == "dino":
        given, width = about["constructor_args"], shapes(about)["heads.0.0.0.weight_orig"][1]
        config = DinoDiscriminator.Config(
            kernel=given["ks"], depths=given["key_depths"], width=width, layers=given["depth"], heads=width // 64
        )
        backbone = FrozenDino(VitConfig(config.width, config.layers, config.heads, 16), config.depths)
        model = DinoDiscriminator(config, backbone)
    elif judge == "stylegan":
        model = StyleGanDiscriminator(StyleGanDiscriminator.Config(about["constructor_args"]["image_size"]))
    else:
        raise ValueError("neither the keys nor the constructor arguments are those of a model here")
    return model, model.state_dict(keep_vars=True)


def _backbone(shapes: dict[str, list[int]]) -> FrozenDino:
    """Of the sizes of a plain ViT's tensors, with the 64 channels a head that every published one has."""
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    layers = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    return FrozenDino(VitConfig(width, layers, width // 64, patch), [layers - 1])


def _tokenizer(about: dict[str, Any]) -> TokenizerConfig:
    if "model_class" in about:
        redundant = next((shape[0] for key, shape in shapes(about).items() if key.endswith("_comp")), 0)
        grid_model = "2D" in about["model_class"]
        return models.gigatok(about["model_init_args"], about, grid_model=grid_model, redundant=redundant)
    if "resolved_config" in about:
        return models.llamagen(about["resolved_config"], about)
    return models.robustok(about["constructor_args"], about)


def _gpt(about: dict[str, Any]) -> GPT:
    return GPT(models.gpt(about["resolved_config"], "learned" if "positional_embedding" in about["keys"] else "rope2d"))


def _recognise(fixture: Fixture, model: nn.Module, report: Report) -> None:
    """From these keys and shapes alone our loader builds the same architecture, wherever they show it."""
    tensors = {key: torch.empty(shape) for key, shape in shapes(fixture.about).items()}
    if isinstance(model, Tokenizer) and not _shown(model):
        return
    if isinstance(model, Tokenizer):
        family = family_of(tensors, fixture.name)
        own = family.config(family.rename(tensors))
        again: nn.Module = Tokenizer(resolve(TokenizerConfig, own, where="model"))
        # What decides the computation besides the tensors.
        report.equal("recognised image size", again.image_size, model.image_size)
        norms = [getattr(each.quantizer.config, "l2_norm", None) for each in (again, model)]
        report.equal("recognised quantizer", *norms)
        report.equal("recognised heads", _heads(again), _heads(model))
    elif isinstance(model, GPT | RAR):
        own = generator_config(tensors, {}, _not_shown(model), fixture.name)
        again = build("autoregressive.models:GENERATORS", own)
        report.equal("recognised heads", again.heads, model.heads)
        report.equal("recognised tokens", again.num_tokens, model.num_tokens)
    else:
        return
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    report.equal("recognised keys", {key: list(value.shape) for key, value in again.state_dict().items()}, state)


def _shown(model: Tokenizer) -> bool:
    """Whether heads are 64 wide, and images 256 pixels where no table tells: the loader takes both for granted."""
    parts = (model.config.encoder, model.config.decoder)
    sizes = [part.get("transformer", part) for part in parts]
    return all(size["width"] == 64 * size["heads"] for size in sizes if size.get("width")) and (
        model.config.encoder["name"] != "cnn" or model.image_size == 256
    )


def _not_shown(model: GPT | RAR) -> dict[str, int]:
    """What a person has to state: the heads of a GPT of no released size, and its tokens where no table tells."""
    stated = {}
    if isinstance(model, GPT):
        if (model.width, model.num_layers) not in [size[:2] for size in SIZES.values()]:
            stated["heads"] = model.heads
        if "positional_embedding" not in model.state_dict() and model.num_tokens != 256:
            stated["num_tokens"] = model.num_tokens
    return stated


def _heads(model: nn.Module) -> list[int]:
    return [module.heads for module in model.modules() if isinstance(getattr(module, "heads", None), int)]
