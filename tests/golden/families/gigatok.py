"""Tokenizers of GigaTok (1D and 2D) and ReTok."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden import models
from tests.golden.fixture import Fixture, Report, Skip, filled
from tokenizer.config import TokenizerConfig
from tokenizer.losses.feature import mean_cosine
from tokenizer.model import Tokenizer
from tokenizer.released import from_released, to_released


def matches(fixture: Fixture) -> bool:
    if fixture.kind == "fullsize":
        config = fixture.about.get("config")
        return isinstance(config, dict) and config["model"]["model_cls"].startswith("VQVitModel")
    return fixture.kind == "tiny" and fixture.about.get("model_class", "").startswith("VQVitModel")


def check(fixture: Fixture, report: Report) -> None:
    if fixture.kind == "fullsize":
        _check_released_size(fixture, report)
        return
    if fixture.about["init_args"].get("use_qk_norm"):
        raise Skip("OPTIONAL: query/key LayerNorm and mean queries are in no released tokenizer, so not built here")
    _check_small(fixture, report)


def build(fixture: Fixture) -> Tokenizer:
    about = fixture.about
    grid_model = about["model_class"] == "VQVitModel2DPlus"
    weights = dict(fixture.weights)
    weights.setdefault("quantize.codebook_used", torch.zeros(65536))
    redundant = next((len(value) for key, value in weights.items() if key.endswith("_comp")), 0)
    config = models.gigatok(about["init_args"], about, grid_model=grid_model, redundant=redundant)
    model = Tokenizer(config)
    model.load_state_dict(from_released(weights, config.encoder["name"]), strict=True)
    return model.eval()


def _check_small(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    model = build(fixture)
    report.recorded = fixture.about["fp32_versus_fp64_max_relative_difference"]
    with torch.no_grad():
        _forward(model, fixture, report)
        if "quant_norot" in io:
            model.quantizer.config.rotation = False
            vectors = model.quantizer(model.latents(fixture.images())[0]).vectors
            report.close("quant_norot", vectors, io["quant_norot"])
            report.close("decoded_norot", model.decode_vectors(vectors).images, io["decoded_norot"])
        if "layer0_queries" in io:
            _redundant_tokens(model, fixture, report)
    for case, settings in fixture.about.get("training_cases", {}).items():
        _training(build(fixture), fixture, report, f"train_{case}", settings)


def _forward(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    images = fixture.images()
    latents, spatial = model.latents(images)
    quantized = model.quantizer(latents)
    view = model.decode_vectors(quantized.vectors)
    head = model.decoder.transformer.distill_mlp
    codes = quantized.codes[:, : model.num_tokens]
    features = view.features
    got = {
        "spatial": spatial, "pre_quant": latents, "quant": quantized.vectors, "decoded": view.images,
        "rec_spatial": features.spatial, "inner_feat": head(features.inner), "probe_feat": features.inner,
    }  # fmt: skip
    report.equal("indices", quantized.codes.flatten(), io["indices"])
    encoder = model.encoder.transformer
    if model.is_1d:
        features = encoder.features(spatial)
        got["vit_feature"] = features[:, : model.num_tokens].transpose(1, 2).unsqueeze(2)
        got["fixed_width_feature"] = encoder.project(features)
        got["codebook_entry"] = model.quantizer.lookup(quantized.codes).transpose(1, 2).unsqueeze(2)
    else:
        grid = encoder.to_map(encoder.tokens(spatial)[0])
        got["vit_feature"], got["fixed_width_feature"] = grid, encoder.conv_out(grid)
        entry = model.quantizer.lookup(quantized.codes).transpose(1, 2)
        got["codebook_entry"] = entry.unflatten(2, (model.grid, model.grid))
    decoded = model.decode(codes)
    got |= {"decoded_from_code": decoded, "decoded_from_code_flat": decoded}
    for name, value in got.items():
        if name in io:
            report.close(name, value, io[name])


def _redundant_tokens(model: Tokenizer, fixture: Fixture, report: Report) -> None:
    """What ReTok's decoder sees of its longer sequence, and images from fewer tokens."""
    io = fixture.io
    quantized = model.quantizer(model.latents(fixture.images())[0])
    model.quantizer.config.rotation = True
    vectors, codes = model.quantizer(model.latents(fixture.images())[0]).vectors, quantized.codes
    decoder = model.decoder.transformer
    seen: list[tuple[Tensor, ...]] = []
    handle = decoder.transformer[0].register_forward_pre_hook(lambda _module, given: seen.append(given[:4]))
    decoder(model.post_quant_conv(vectors))
    handle.remove()
    for name, value in zip(("queries", "memory", "query_pos", "memory_pos"), seen[0], strict=True):
        report.close(f"layer0_{name}", value.transpose(0, 1), io[f"layer0_{name}"])
    for name, expected in io.items():
        if name.startswith("decoded_num_tokens_"):
            kept = int(name.rpartition("_")[2])
            report.close(name, model.decode_vectors(vectors[:1], kept).images, expected)
        elif name.startswith("decoded_code_"):
            words = name.split("_")
            given, kept = int(words[2]), int(words[-1]) if words[-1].isdigit() else None
            report.close(name, model.decode(codes[:1, :given], kept), expected)
    hidden = io["mask_key_padding"]
    decoder.layout.visible = lambda there, num_tokens: (hidden.shape[1], hidden)
    features = decoder(model.post_quant_conv(vectors))
    report.close("rec_spatial_masked", features.spatial, io["rec_spatial_masked"])
    report.close("decoded_masked", model.decoder.cnn(features.spatial), io["decoded_masked"])


def _training(model: Tokenizer, fixture: Fixture, report: Report, case: str, settings: dict) -> None:
    """One training pass: losses, usage, gradients."""
    about, io = fixture.about, fixture.io
    report.recorded = about["training_fp32_versus_fp64"][case.removeprefix("train_")]
    model.train()
    model.quantizer.config.rotation = settings["rot"]
    model.quantizer.config.entropy_weight = settings["entropy_loss_ratio"]
    images = fixture.images()
    latents, spatial = model.latents(images)
    quantized = model.quantizer(latents)
    view = model.decode_vectors(quantized.vectors)
    inner = model.semantic_head(view.features.inner)
    losses = {f"{name}_loss": value for name, value in quantized.losses.items()}
    losses.setdefault("entropy_loss", torch.zeros(()))
    shortcut = settings.get("_rec_loss", True)
    made, target = view.features.spatial, spatial.detach()
    mse = settings["fea_rec_loss_type"] == "mse"  # the only kind that released configs use
    feature = F.mse_loss(made, target) if mse else (1 - F.cosine_similarity(made, target, dim=1)).mean()
    losses["feature_rec_loss"] = shortcut * settings.get("fea_rec_loss_weight", 1.0) * feature
    losses["proj_loss"] = -mean_cosine(inner, io["feat_target"]).mean()
    total = F.mse_loss(view.images, images) + sum(losses.values()) - 0.5 * losses["proj_loss"]
    if shortcut:
        direct = model.decoder.cnn(spatial)
        total = total + F.mse_loss(direct, images)
        if f"{case}/direct_decoded" in io:
            report.close(f"{case}/direct_decoded", direct, io[f"{case}/direct_decoded"], key="direct_decoded")
    total.backward()
    got = {**losses, "total_loss": total, "inner_feat": inner, "codebook_usage": model.quantizer.usage()}
    got["codebook_used_tail"] = model.quantizer.codebook_used[-io[f"{case}/codebook_used_tail"].numel() :]
    for name, value in got.items():
        if f"{case}/{name}" in io:
            report.close(f"{case}/{name}", value, io[f"{case}/{name}"], key=name)
    _gradients(model, fixture, report, f"{case}/")


def _gradients(model: nn.Module, fixture: Fixture, report: Report, prefix: str) -> None:
    name = model.config.encoder["name"]
    names = dict(from_released({key: key for key in to_released(model.state_dict(), name)}, name))
    ours = {theirs: own for own, theirs in names.items()}
    order = [ours[key] for key in fixture.about["grad_norm_parameter_order"]]
    named = {key: value for key, value in fixture.io.items() if key.startswith(f"{prefix}grad/")}
    renamed = {ours[key.removeprefix(f"{prefix}grad/")]: value for key, value in named.items()}
    report.recorded = {
        **report.recorded,
        **{f"grad/{ours[key[5:]]}": value for key, value in report.recorded.items() if key.startswith("grad/")},
    }
    report.gradients(model, order, fixture.io[f"{prefix}grad_norms"], renamed, prefix)


def _check_released_size(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    given = about["config"]["model"]
    # The formula's keys come without shapes; the original appends copies of all queries but the first 32.
    redundant = given["init_args"]["num_latent_tokens"] - 32 if any("_comp" in key for key in about["fill"]) else 0
    config = models.gigatok(given["init_args"], about, grid_model="2D" in given["model_cls"], redundant=redundant)
    released_size(fixture, report, config)


def released_size(fixture: Fixture, report: Report, config: TokenizerConfig) -> None:
    """A tokenizer of released size, its weights from the formula, on one image. Also LlamaGen's."""
    about, io = fixture.about, fixture.io
    report.recorded = about.get("fp32_versus_fp64_max_relative_difference", {})
    name = config.encoder["name"]
    with torch.device("meta"):
        model = Tokenizer(config)
    shapes = to_released(model.state_dict(), name)
    shapes["quantize.codebook_used"] = torch.zeros(65536)
    model.load_state_dict(from_released(filled(about, shapes), name), strict=True, assign=True)
    model.eval()
    with torch.no_grad():
        latents, spatial = model.latents(fixture.images())
        quantized = model.quantizer(latents)
        report.close("pre_quant", latents, io["pre_quant"])
        report.codes("indices", quantized.codes.flatten(), io["indices"], io["index_margin"])
        # Decoding starts from the reference's codes: one that was a toss-up must not change the picture.
        codes = io["indices"].view(1, -1)[:, : model.num_tokens]
        images = model.decode(codes)
        crop = (..., slice(96, 160), slice(96, 160))
        report.close("decoded_crop", images[crop], io["decoded_crop"], key="decoded")
        report.close("decoded_stats", torch.stack([images[0].mean((1, 2)), images[0].std((1, 2))]), io["decoded_stats"])
        if "rec_spatial_crop" in io:
            report.close("spatial_crop", spatial[:, :32], io["spatial_crop"], key="spatial")
            vectors = model.quantizer.lookup(codes).transpose(1, 2)
            vectors = vectors.unsqueeze(2) if model.is_1d else vectors.unflatten(2, (model.grid, model.grid))
            features = model.decode_vectors(vectors).features
            report.close("rec_spatial_crop", features.spatial[:, :32], io["rec_spatial_crop"])
            inner = model.decoder.transformer.distill_mlp(features.inner)
            report.close("inner_feat_crop", inner[:, :16], io["inner_feat_crop"])
        for key, expected in io.items():
            if key.startswith("decoded_crop_num_tokens_"):
                kept = int(key.rpartition("_")[2])
                report.close(key, model.decode(codes, kept)[crop], expected, key="decoded")
