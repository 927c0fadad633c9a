"""LlamaGen's convolutional tokenizers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.golden import models
from tests.golden.families.gigatok import _gradients, released_size
from tests.golden.fixture import Fixture, Report
from tokenizer.model import Tokenizer
from tokenizer.released import from_released


def matches(fixture: Fixture) -> bool:
    if fixture.kind == "fullsize":
        convolutions = {"encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight"}
        return convolutions <= fixture.keys and not {"config", "project"} & fixture.about.keys()
    return fixture.kind == "tiny" and "model_class" not in fixture.about and (
        "encoder_ch_mult" in fixture.about.get("constructor_args", {})
    )


def check(fixture: Fixture, report: Report) -> None:
    if fixture.kind == "fullsize":
        arguments = fixture.arguments("resolved_config", "constructor_args")
        released_size(fixture, report, models.llamagen(arguments, fixture.about))
        return
    about, io = fixture.about, fixture.io
    recorded = about["fp32_versus_fp64_max_relative_difference"]
    model = build(fixture).eval()
    report.recorded = recorded["eval"]
    images = fixture.images()
    with torch.no_grad():
        latents, _ = model.latents(images)
        quantized = model.quantizer(latents)
        report.close("pre_quant", latents, io["pre_quant"])
        report.close("quant", quantized.vectors, io["quant"])
        report.equal("indices", quantized.codes.flatten(), io["indices"])
        report.close("decoded", model.decode_vectors(quantized.vectors).images, io["decoded"])
        report.close("decoded_from_code", model.decode(quantized.codes), io["decoded_from_code"])
    if "train/total_loss" in io:
        _training(build(fixture).train(), fixture, report)


def build(fixture: Fixture) -> Tokenizer:
    model = Tokenizer(models.llamagen(fixture.about["constructor_args"], fixture.about))
    weights = {"quantize.codebook_used": torch.zeros(65536), **fixture.weights}
    model.load_state_dict(from_released(weights, "cnn"), strict=True)
    return model


def _training(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    report.recorded = fixture.about["fp32_versus_fp64_max_relative_difference"]["train"]
    images = fixture.images()
    quantized = model.quantizer(model.latents(images)[0])
    losses = {f"{name}_loss": value for name, value in quantized.losses.items()}
    total = F.mse_loss(model.decode_vectors(quantized.vectors).images, images) + sum(losses.values())
    total.backward()
    for name, value in {**losses, "total_loss": total, "codebook_usage": model.quantizer.usage()}.items():
        if f"train/{name}" in io:
            report.close(f"train/{name}", value, io[f"train/{name}"], key=name)
    _gradients(model, fixture, report, "train/")
