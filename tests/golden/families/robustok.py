"""RobusTok's tokenizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.golden import models
from tests.golden.families.gigatok import _gradients
from tests.golden.fixture import Fixture, Report, filled
from tokenizer.losses.feature import contrastive_loss
from tokenizer.model import Tokenizer
from tokenizer.released import from_released, to_released


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and "encoder_model" in fixture.about.get("constructor_args", {})


def check(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    config = models.robustok(about["constructor_args"], about)
    if fixture.kind == "fullsize":
        with torch.device("meta"):
            shapes = to_released(Tokenizer(config).state_dict(), "dino_vit")
        shapes["quantize.ema_vocab_hit_SV"] = torch.zeros(config.quantizer["codebook_size"])
        patches, latents = 1 + 16**2, about["constructor_args"]["num_latent_tokens"]
        for side, kept in (("encoder", latents), ("decoder", 1 + latents)):
            shapes[f"{side}.lvl1LC"] = (torch.arange(patches + kept) >= patches).long()[None]
        weights = filled(about, shapes)
    else:
        weights = fixture.weights
    with torch.device("meta"):
        model = Tokenizer(config)
    model.load_state_dict(from_released(weights, "dino_vit"), strict=True, assign=True)
    _forward(model.eval(), fixture, report)
    if "train/total_loss" in io:
        _training(model.train(), fixture, report)


def _forward(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    report.recorded = fixture.about["fp32_versus_fp64_max_relative_difference"]
    images = fixture.images()
    with torch.no_grad():
        latents, _ = model.latents(images)
        quantized = model.quantizer(latents)
        report.close("pre_quant", latents, io["pre_quant"])
        report.codes("indices", quantized.codes.flatten(), io["indices"], io.get("index_margin"))
        feature = model.teacher.tokens(images)[:, 0]
        report.close("teacher_class_feature", feature, io["teacher_class_feature"])
        decoded = model.decode(io["indices"].view(len(images), -1))
        if "encoder_tokens" in io:
            report.close("encoder_tokens", model.encoder.tokens(images), io["encoder_tokens"])
            report.close("quant", quantized.vectors, io["quant"])
            report.close("decoded", decoded[: len(io["decoded"])], io["decoded"])
            report.close("decode(quant)", model.decode_vectors(quantized.vectors).images, decoded)
            report.close("decoded_stats", _statistics(decoded), io["decoded_stats"])
        else:
            report.close("decoded_crop", decoded[..., 96:160, 96:160], io["decoded_crop"], key="decoded")
            statistics = torch.stack([decoded[0].mean((1, 2)), decoded[0].std((1, 2))])
            report.close("decoded_stats", statistics, io["decoded_stats"])


def _statistics(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images.flatten(1).mean(1), images.flatten(1).std(1)], dim=1)


def _training(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    """One training pass without stochastic depth: losses, hit counts, gradients."""
    io = fixture.io
    report.recorded = fixture.about["train_fp32_versus_fp64"]
    images = fixture.images()
    quantized = model.quantizer(model.latents(images)[0])
    decoded = model.decode_vectors(quantized.vectors).images
    guide = model.quant_conv(model.teacher.tokens(images)[:, 0, :, None, None]).mean((2, 3))
    semantic = 0.1 * contrastive_loss(guide, quantized.vectors.mean((2, 3)))
    losses = {"vq_loss": quantized.losses["vq"], "commit_loss": quantized.losses["commit"], "sem_loss": semantic}
    total = F.mse_loss(decoded, images) + sum(losses.values())
    total.backward()
    got = {
        **losses, "total_loss": total, "decoded_stats": _statistics(decoded),
        "usage_percent": 100 * model.quantizer.usage()[None], "ema_vocab_hit": model.quantizer.hits,
    }  # fmt: skip
    for name, value in got.items():
        report.close(f"train/{name}", value, io[f"train/{name}"], key=name)
    _gradients(model, fixture, report, "train/")
