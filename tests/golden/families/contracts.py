"""Every released configuration: our model has exactly those keys, shapes, dtypes and parameters, and is recognised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from autoregressive.released import generator_config
from common.config import build, resolve
from common.networks.lpips import LPIPSNetwork
from tests.golden import models
from tests.golden.fixture import Fixture, Report
from tokenizer.config import TokenizerConfig
from tokenizer.discriminators.dino import DinoDiscriminator, FrozenDino
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.discriminators.stylegan import StyleGanDiscriminator
from tokenizer.layers.vit import VitConfig
from tokenizer.model import Tokenizer
from tokenizer.paper_flags import from_released, to_released
from tokenizer.released import family, tokenizer_config


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
    if fixture.path.stem != "disc_dino_backbone" and not fixture.path.stem.startswith("lpips"):
        report.equal("trainable", trainable, about["num_parameters_trainable"])
    names = {id(value) for value in model.parameters()}
    kept = zip(state, model.state_dict(keep_vars=True).values(), strict=True)
    buffers = sorted(key for key, value in kept if id(value) not in names)
    report.equal("buffers", buffers, sorted(about["buffers"]))


def shapes(about: dict[str, Any]) -> dict[str, list[int]]:
    return {key: shape for key, (shape, _) in about["keys"].items()}


def build_from(fixture: Fixture) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model a contract describes, and its state dict under the released names."""
    about, stem = fixture.about, fixture.path.stem
    convolutions = "encoder_ch_mult" in about.get("resolved_config", {})
    if "model_class" in about or convolutions or "encoder_model" in about.get("constructor_args", {}):
        config = _tokenizer(about)
        model: nn.Module = Tokenizer(config)
        return model, to_released(model.state_dict(), config.encoder["name"])
    if "generator_config" in about:
        model = RAR(models.rar(about["generator_config"], about["codebook_size"]))
    elif "n_layer" in about.get("resolved_config", {}):
        model = _gpt(about)
    elif stem.startswith("lpips"):
        model = LPIPSNetwork()
    elif stem == "disc_patchgan":
        given = about["constructor_args"]
        model = PatchGan(PatchGan.Config(channels=given["ndf"], layers=given["n_layers"]))
    elif stem.startswith("disc_dino"):
        config = DinoDiscriminator.Config()
        backbone = FrozenDino(VitConfig(config.width, config.layers, config.heads, 16), config.depths)
        if stem == "disc_dino_backbone":
            return backbone, {key.removeprefix("vit."): value for key, value in backbone.state_dict().items()}
        model = DinoDiscriminator(config, backbone)
    elif stem == "disc_stylegan":
        model = StyleGanDiscriminator(StyleGanDiscriminator.Config(about["constructor_args"]["image_size"]))
    else:
        raise ValueError("no model of ours answers to this contract")
    return model, model.state_dict()


def _tokenizer(about: dict[str, Any]) -> TokenizerConfig:
    if "model_class" in about:
        redundant = any("_comp" in key for key in about["keys"])
        grid_model = "2D" in about["model_class"]
        return models.gigatok(about["model_init_args"], about, grid_model=grid_model, redundant=redundant)
    if "resolved_config" in about:
        return models.llamagen(about["resolved_config"], about)
    return models.robustok(about["constructor_args"], about)


def _gpt(about: dict[str, Any]) -> GPT:
    given = about["resolved_config"]
    learned = "positional_embedding" in about["keys"]
    return GPT(GPT.Config(
        size=about["model_name"], codebook_size=given["vocab_size"], num_tokens=given["block_size"],
        num_classes=given["num_classes"], positions="learned" if learned else "rope2d",
        condition="class" if given["model_type"] == "c2i" else "caption",
    ))  # fmt: skip


def _recognise(fixture: Fixture, model: nn.Module, report: Report) -> None:
    """From these keys and shapes alone our loader builds the same architecture."""
    tensors = {key: torch.empty(shape) for key, shape in shapes(fixture.about).items()}
    if isinstance(model, Tokenizer):
        name, released = family(tensors, fixture.name)
        report.equal("recognised as released", released, True)
        own = tokenizer_config(from_released(tensors, name), name)
        again: nn.Module = Tokenizer(resolve(TokenizerConfig, own, where="model"))
        # What decides the computation besides the tensors.
        report.equal("recognised image size", again.image_size, model.image_size)
        report.equal("recognised quantizer", again.quantizer.config.l2_norm, model.quantizer.config.l2_norm)
        report.equal("recognised heads", _heads(again), _heads(model))
    elif isinstance(model, GPT | RAR):
        again = build("autoregressive.models:GENERATORS", generator_config(tensors, {}, {}, fixture.name))
        report.equal("recognised heads", again.heads, model.heads)
        report.equal("recognised tokens", again.num_tokens, model.num_tokens)
    else:
        return
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    report.equal("recognised keys", {key: list(value.shape) for key, value in again.state_dict().items()}, state)


def _heads(model: nn.Module) -> list[int]:
    return [module.heads for module in model.modules() if isinstance(getattr(module, "heads", None), int)]
