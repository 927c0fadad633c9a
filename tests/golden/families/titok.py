"""TiTok and One-D-Piece. Their images are v / 255 in [0,1]; ours are v / 127.5 - 1, so values are compared in [0,1]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import models
from tests.golden.fixture import Fixture, Report, filled
from tokenizer.families.titok import rename, restore
from tokenizer.model import Tokenizer
from tokenizer.training_pass import TrainingPass

FROZEN = ("encoder", "quant_conv", "quantizer")
"""In the second stage."""
CROP = (..., slice(96, 160), slice(96, 160))
SHORT_CROP = (..., slice(112, 144), slice(112, 144))


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and fixture.about.get("project") in ("titok", "onedpiece")


def check(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    report.recorded = about["fp32_versus_fp64_max_relative_difference"]
    with torch.device("meta"):
        model = Tokenizer(models.titok(about["constructor_args"], about))
    weights = filled(about, restore(model.state_dict())) if fixture.kind == "fullsize" else fixture.weights
    model.load_state_dict(rename(weights), strict=True, assign=True)
    model.eval()
    with torch.no_grad():
        if fixture.kind == "fullsize":
            _released_size(model, fixture, report)
        elif "noise" in fixture.io:
            _gaussian(model, fixture, report)
        else:
            _codes(model, fixture, report)
    for case in about.get("training_cases", ()):
        _training(model, fixture, report, case)


def images_of(fixture: Fixture, name: str = "image_u8") -> Tensor:
    return fixture.io[name].float() / 127.5 - 1


def unit(images: Tensor) -> Tensor:
    return (images + 1) / 2


def _codes(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io, images = fixture.io, images_of(fixture)
    latents, _ = model.latents(images)
    quantized = model.quantizer(latents)
    report.close("encoder_tokens", model.encoder.tokens(images), io["encoder_tokens"])
    report.close("pre_quant", latents, io["pre_quant"])
    report.equal("indices", model.encode(images), io["indices"][:, 0])
    report.close("quant", quantized.vectors, io["quant"])
    report.close("decoded", unit(model.decode_vectors(quantized.vectors).images), io["decoded"])
    report.close("decoded_from_tokens", unit(model.decode(quantized.codes)), io["decoded_from_tokens"])
    features = model.decoder.features(model.post_quant_conv(quantized.vectors))
    report.close("decoder_tokens", features.flatten(2).transpose(1, 2), io["decoder_tokens"])
    if "proxy_logits" in io:
        logits = model.decoder.ffn(features)
        report.close("proxy_logits", logits, io["proxy_logits"])
        report.close("soft_code", model.decoder.mixture(logits), io["soft_code"])
    lengths = fixture.about.get("decoded_lengths", [])
    for length in lengths:
        name = f"length_{length}/decoded"
        report.close(name, unit(model.decode(quantized.codes[:1, :length])), io[name])
        report.close(f"{name}, cut", unit(model.decode(quantized.codes[:1], length)), io[name], key=name)
    if len(lengths) > 1:  # two lengths in one batch
        short, long = lengths[1], lengths[-1]
        both = unit(model.decode(quantized.codes[:1].expand(2, -1), torch.tensor([short, long])))
        report.close("two lengths", both[:1], io[f"length_{short}/decoded"], key=f"length_{short}/decoded")
        report.close("two lengths", both[1:], io[f"length_{long}/decoded"], key=f"length_{long}/decoded")


def _gaussian(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io, images = fixture.io, images_of(fixture)
    moments, _ = model.latents(images)
    mean = model.encode_vectors(images)
    report.close("moments", moments, io["moments"])
    report.close("mean", mean, io["mean"])
    report.close("encoder_tokens", model.encoder.tokens(images), io["encoder_tokens"])
    report.close("decoded_mode", unit(model.decode_vectors(mean).images), io["decoded_mode"])
    features = model.decoder.features(model.post_quant_conv(mean))
    report.close("decoder_tokens_mode", features.flatten(2).transpose(1, 2), io["decoder_tokens_mode"])
    with mock.patch("torch.randn_like", return_value=io["noise"]):
        sampled = model.train().quantizer(moments)
    model.eval()
    report.close("sample", sampled.vectors, io["sample"])
    report.close("decoded_sample", unit(model.decode_vectors(sampled.vectors).images), io["decoded_sample"])
    report.close("kl", sampled.losses["kl"], 1e-6 * io["kl"].sum() / len(images))


def _released_size(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io, images = fixture.io, images_of(fixture)
    latents, _ = model.latents(images)
    report.close("pre_quant", latents[:, : io["pre_quant"].shape[1]], io["pre_quant"])
    report.close("encoder_tokens_crop", model.encoder.tokens(images)[:, :8], io["encoder_tokens_crop"])
    report.codes("indices", model.quantizer(latents).codes[0], io["indices"], io["index_margin"])
    codes = io["indices"][None]
    features = model.decoder.features(model.post_quant_conv(model.vectors(codes)))
    report.close("decoder_tokens_crop", features.flatten(2).transpose(1, 2)[:, :8], io["decoder_tokens_crop"])
    if "proxy_logits_crop" in io:
        report.close("proxy_logits_crop", model.decoder.ffn(features)[:, :64, 4:8, 4:8], io["proxy_logits_crop"])
    decoded = unit(model.decode(codes))
    report.close("decoded_crop", decoded[CROP], io["decoded_crop"])
    statistics = torch.stack([decoded[0].mean((1, 2)), decoded[0].std((1, 2))])
    report.close("decoded_stats", statistics, io["decoded_stats"])
    for name in [name for name in io if name.startswith("decoded_crop_length_")]:
        report.close(name, unit(model.decode(codes, int(name.rpartition("_")[2])))[SHORT_CROP], io[name])


def _training(model: Tokenizer, fixture: Fixture, report: Report, case: str) -> None:
    """`case`: train (pixels), stage1 (codes of MaskGIT-VQGAN) or stage2 (its decoder), without perceptual losses."""
    io, images = fixture.io, images_of(fixture)
    model.requires_grad_(True).zero_grad()
    TrainingPass(model, FROZEN if case == "stage2" else ()).train()
    with mock.patch("torch.randn_like", return_value=io.get("noise")):
        quantized = model.quantizer(model.latents(images)[0])
    end = int(io[f"{case}/end"]) if f"{case}/end" in io else None
    if case == "stage1":
        latents = model.post_quant_conv(quantized.vectors)
        logits = model.decoder.ffn(model.decoder.features(latents, end))
        reconstruction = F.cross_entropy(logits.flatten(2), io["stage1/proxy_codes"])
    else:
        reconstruction = F.mse_loss(unit(model.decode_vectors(quantized.vectors, end).images), unit(images))
    losses = quantized.losses
    total = reconstruction + sum(losses.values())
    got = {"reconstruction_loss": reconstruction, "total_loss": total}
    if "kl" in losses:
        got["kl_loss"] = losses["kl"]
    elif losses:
        got |= {"codebook_loss": losses["vq"], "commitment_loss": losses["commit"]}
        got["quantizer_loss"] = losses["vq"] + losses["commit"]
    for name, value in got.items():
        report.close(f"{case}/{name}", value, io[f"{case}/{name}"])
    total.backward()
    _gradients(model, fixture.about, io, report, case)


def _gradients(model: Tokenizer, about: Mapping[str, Any], io: Mapping[str, Tensor], report: Report, case: str) -> None:
    """Under the released names."""
    own = restore({name: value.grad for name, value in model.named_parameters()})
    order = about["training_cases"][case].get("grad_norm_parameter_order") or about["grad_norm_parameter_order"]
    none = torch.tensor(-1.0)
    norms = torch.stack([none if own[key] is None else own[key].norm() for key in order])
    report.close(f"{case}/grad_norms", norms, io[f"{case}/grad_norms"])
    for name in [name for name in io if name.startswith(f"{case}/grad/")]:
        report.close(name, own[name.removeprefix(f"{case}/grad/")], io[name])
