"""Discriminators: PatchGAN, StyleGAN's, and heads on a frozen DINO."""

from __future__ import annotations

import torch

from tests.golden.fixture import Fixture, Report, filled
from tokenizer.discriminators.dino import DinoDiscriminator, FrozenDino, LocalBatchNorm, fit
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.discriminators.stylegan import StyleGanDiscriminator
from tokenizer.layers.vit import VitConfig


def matches(fixture: Fixture) -> bool:
    return fixture.kind in ("tiny", "fullsize") and kind(fixture) is not None


def kind(fixture: Fixture) -> str | None:
    """Which discriminator the tensors' names are of; "backbone" is the frozen part of the DINO one alone."""
    keys = fixture.keys
    if {"main.0.weight", "main.2.weight"} <= keys:
        return "patchgan"
    if {"blocks.0.weight", "final_linear.0.weight"} <= keys:
        return "stylegan"
    if "heads.0.0.0.weight_orig" in keys:
        return "dino"
    return "backbone" if {"patch_embed.proj.weight", "x_scale"} <= keys else None


def check(fixture: Fixture, report: Report) -> None:
    report.recorded = fixture.about.get("fp32_versus_fp64", {})
    {"patchgan": _patchgan, "dino": _dino, "stylegan": _stylegan}[kind(fixture)](fixture, report)


def _stylegan(fixture: Fixture, report: Report) -> None:
    reduced, io = fixture.about["reduced_dimensions"], fixture.io
    widths = [width for _, width in sorted(reduced["channels_by_resolution"].items(), key=lambda item: int(item[0]))]
    model = StyleGanDiscriminator(StyleGanDiscriminator.Config(reduced["image_size"], widths))
    model.load_state_dict(fixture.weights)
    images = fixture.images().requires_grad_()
    logits = model(images)
    report.close("logits", logits, io["logits"])
    logits.sum().backward()
    report.close("grad_x", images.grad, io["grad_x"])


def _patchgan(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    given = about.get("constructor_args", {})
    model = PatchGan(PatchGan.Config(channels=given.get("ndf", 64), layers=given.get("n_layers", 3)))
    weights = filled(about, model.state_dict()) if fixture.kind == "fullsize" else fixture.weights
    model.load_state_dict(weights)
    images = fixture.images().requires_grad_()
    if "eval_logits_fresh" in io:
        report.close("eval_logits_fresh", model.eval()(images), io["eval_logits_fresh"])
    logits = model.train()(images)
    report.close("train_logits", logits, io["train_logits" if "train_logits" in io else "logits_train"])
    if "grad_x" in io:
        (-logits.mean()).backward()
        report.close("grad_x", images.grad, io["grad_x"])
        report.close("grad_first_conv", model.main[0].weight.grad, io["grad_first_conv"])
        norm = model.main[3]
        report.close("running_mean_after", norm.running_mean, io["running_mean_after"])
        report.close("running_var_after", norm.running_var, io["running_var_after"])
        after = "eval_logits_after_one_train_step"
        report.close(after, model.eval()(images), io[after])


def _dino(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    reduced = about.get("reduced_dimensions", {})
    config = DinoDiscriminator.Config(
        kernel=reduced.get("kernel", 9), depths=reduced.get("key_depths", [2, 5, 8, 11]), augment=0.0,
        width=reduced.get("embed_dim", 384), layers=reduced.get("depth", 12), heads=reduced.get("heads", 6),
    )  # fmt: skip
    backbone = FrozenDino(VitConfig(config.width, config.layers, config.heads, 16), config.depths)
    model = DinoDiscriminator(config, backbone)
    if fixture.kind == "fullsize":
        names = {key.removeprefix("vit."): value for key, value in backbone.state_dict().items()}
        backbone.load(filled(about, names, "backbone."))
        model.load_state_dict(filled(about, model.state_dict()))
        with torch.no_grad():
            report.close("logits_train", model.train()(fixture.images()), io["logits_train"])
        return
    inside = {key.removeprefix("backbone."): value for key, value in fixture.weights.items() if key.startswith("back")}
    backbone.load(inside)
    model.load_state_dict({key: value for key, value in fixture.weights.items() if not key.startswith("back")})
    images = fixture.images("x224").requires_grad_()
    for place, features in enumerate(backbone(images)):
        report.close(f"readout_{place}", features, io[f"readout_{place}"])
    logits = model.train()(images)
    report.close("logits_train", logits, io["logits_train"])
    logits.mean().backward()
    report.close("grad_x_abs_mean", images.grad.abs().mean((1, 2, 3)), io["grad_x_abs_mean"])
    report.close("grad_x_patch", images.grad[..., 100:116, 100:116], io["grad_x_patch"])
    first = model.heads[0][0][0]
    report.close("grad_head0_conv0_orig", first.weight_orig.grad, io["grad_head0_conv0_orig"])
    report.close("u_after", first.weight_u, io["u_after"])
    report.close("v_after", first.weight_v, io["v_after"])
    model.eval()
    with torch.no_grad():
        report.close("logits_eval", model(images), io["logits_eval_after_one_train_step"])
        large, crop = fixture.images("x256"), tuple(io["crop_top_left"].tolist())
        report.close("logits_256_area", model.judge(fit(large)), io["logits_256_area"])
        report.close("logits_256_crop", model.judge(fit(large, crop)), io["logits_256_crop"])
        report.close("logits_96_bicubic", model(fixture.images("x96")), io["logits_96_bicubic"])
    norm = LocalBatchNorm(io["bnlocal/weight"].numel())
    norm.load_state_dict({"weight": io["bnlocal/weight"], "bias": io["bnlocal/bias"]})
    report.close("bnlocal/y", norm(io["bnlocal/x"]), io["bnlocal/y"])
