"""Open-MAGVIT2, IBQ, taming's VQGAN, VAR's VQVAE, XQ-GAN and GEAR: contracts, small and full-size tokenizers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import merge, resolve
from tests.golden.fixture import TOLERANCE, Fixture, Report, filled
from tokenizer.config import TokenizerConfig
from tokenizer.families import BY_NAME, family_of, llamagen
from tokenizer.model import Tokenizer

TAMING = {"l2_norm": False, "rotation": False, "codebook_weight": 0.25, "commit_weight": 1.0}


def _convolutions(
    name: str, channels: int, multipliers: list[int], blocks: int, more: int, attention: bool = True
) -> dict[str, Any]:
    shared = {"name": name, "channels": channels, "multipliers": multipliers, "attention": attention}
    open_magvit2 = {"adaptive_norm": name == "magvit2", "depth_to_space": name == "magvit2"}
    return {
        "encoder": {**shared, "blocks": blocks}, "decoder": {**shared, "blocks": blocks + more, **open_magvit2}
    }  # fmt: skip


def _seed_voken(given: dict[str, Any], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Open-MAGVIT2, IBQ and taming's VQGAN."""
    given = {**given, **given.get("ddconfig", {})}
    bits = given["z_channels"]
    if "attn_resolutions" not in given:
        return "magvit2", {
            "z_channels": bits, "quant_conv_kernel": 0, "quantizer": {"name": "lfq", "codebook_size": 2**bits},
            **_convolutions("magvit2", given["ch"], given["ch_mult"], given["num_res_blocks"], 0, False),
        }  # fmt: skip
    ibq = given.get("quantizer", "ibq" if "use_entropy_loss" in given else "taming") == "ibq"
    size, dim = (given.get(key, given.get(other)) for key, other in (
        ("n_embed", "codebook_size"), ("embed_dim", "codebook_embed_dim")
    ))  # fmt: skip
    quantizer = {"name": "ibq" if ibq else "vq", "codebook_size": size, "codebook_dim": dim, **TAMING}
    return "ibq" if ibq else "taming", {
        "z_channels": bits, "quantizer": quantizer,
        **_convolutions("cnn", given["ch"], given["ch_mult"], given["num_res_blocks"], 1),
    }  # fmt: skip


def _gear(given: dict[str, Any], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if "ch" in given:
        return _seed_voken(given, about)
    channels = about.get("reduced_dimensions", {}).get("conv_base_channels", 128)
    return "cnn", {
        "z_channels": given["z_channels"], **_convolutions("cnn", channels, given["encoder_ch_mult"], 2, 1),
        "quantizer": {
            "name": "vq", "codebook_size": given["codebook_size"], "codebook_dim": given["codebook_embed_dim"],
            "rotation": False, "entropy_weight": given["entropy_loss_ratio"],
        },
    }  # fmt: skip


def _var(given: dict[str, Any], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    reduced = about.get("reduced_dimensions", {})
    multipliers = reduced.get("ch_mult", given.get("ch_mult", [1, 1, 2, 2, 4]))
    return "var", {
        "z_channels": given["z_channels"], "quant_conv_kernel": 3,
        **_convolutions("cnn", given["ch"], multipliers, reduced.get("num_res_blocks", 2), 1),
        "quantizer": {
            "name": "multi_scale", "codebook_size": given["vocab_size"], "codebook_dim": given["z_channels"],
            "l2_norm": False, "scales": given["v_patch_nums"], "smoothers": 4,
        },
    }  # fmt: skip


def _xqgan(given: dict[str, Any], about: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    reduced = about.get("reduced_dimensions", {})
    sizes = zip(("width", "layers", "heads"), ("vit_width", "vit_depth", "vit_heads"), (768, 12, 12), strict=True)
    vit = {"name": "dino_vit", **{name: reduced.get(key, released) for name, key, released in sizes}}
    groups, scales = given["product_quant"], given["v_patch_nums"]
    part = {"name": "vq_hits", "codebook_size": given["codebook_size"], "codebook_dim": given["codebook_embed_dim"]}
    if len(scales) > 1:
        part |= {"name": "multi_scale", "scales": scales, "commit_weight": 0.25 * len(scales)}
    if given.get("lfq"):
        part = {"name": "binary_multi_scale", "scales": scales, "codebook_size": 2 ** given["codebook_embed_dim"]}
    return "xqgan" if groups > 1 else "dino_vit", {
        "z_channels": vit["width"], "layout": {"num_tokens": given["num_latent_tokens"]}, "teacher": dict(vit),
        "encoder": {**vit, "groups": groups}, "decoder": vit,
        "quantizer": {"name": "product", "groups": groups, "part": part} if groups > 1 else part,
    }  # fmt: skip


BUILDERS = {
    "SEED-Voken": _seed_voken, "taming-transformers": _seed_voken, "GEAR": _gear, "VAR": _var, "XQ-GAN": _xqgan
}  # fmt: skip
"""By project of a contract: constructor arguments -> family and config."""


def _builder(given: dict[str, Any]) -> Any:
    if "ddconfig" in given:
        return _seed_voken
    if "product_quant" in given:
        return _xqgan
    if "share_quant_resi" in given or "v_patch_nums" in given:
        return _var
    return _gear if "codebook_show_usage" in given else None


def matches(fixture: Fixture) -> bool:
    if fixture.kind not in ("tiny", "fullsize"):
        return False
    return _builder(fixture.about.get("constructor_args", {})) is not None


def contract(fixture: Fixture, report: Report) -> None:
    """The released keys, renamed, are those of our model; it is recognised from them."""
    about = fixture.about
    name, stated = BUILDERS[about["project"]](about.get("resolved_config", about["constructor_args"]), about)
    with torch.device("meta"):
        keys = about["keys"].items()
        tensors = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in keys}
        model = Tokenizer(resolve(TokenizerConfig, stated, where="model"))
        family = family_of(tensors, fixture.name)
        renamed = family.ours(tensors)
        own = resolve(TokenizerConfig, merge(family.config(renamed), {}), where="model")
        again = Tokenizer(own).state_dict()
    report.equal("family", family.name, name)
    state = {key: [list(value.shape), value.dtype] for key, value in model.state_dict().items()}
    report.equal("keys", {key: [list(value.shape), value.dtype] for key, value in renamed.items()}, state)
    report.equal("recognised keys", {key: [list(value.shape), value.dtype] for key, value in again.items()}, state)
    report.equal("parameters", sum(p.numel() for p in model.parameters()), about["num_parameters"])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report.equal("trainable", trainable, about["num_parameters_trainable"])
    for part in ("encoder", "decoder", "quantizer", "teacher", "image_size"):
        report.equal(part, *(_settings(getattr(config, part), family.name) for config in (own, model.config)))


def _settings(part: Any, family: str) -> Any:
    """The settings that decide the computation: null blocks and 2 are the same encoder, losses are not stored."""
    if not isinstance(part, dict):
        return part
    kept = {key: _settings(value, family) for key, value in part.items() if key not in ("blocks", "entropy_weight")}
    return {key: value for key, value in kept.items() if not (key == "commit_weight" and family == "cnn")}


def check(fixture: Fixture, report: Report) -> None:
    about = fixture.about
    given = about["constructor_args"]
    name, stated = _builder(given)(given, about)
    images = _images(fixture)
    stated["image_size"] = images.shape[-1]
    with torch.device("meta"):
        model = Tokenizer(resolve(TokenizerConfig, stated, where="model"))
    rename = llamagen.rename if name == "cnn" else BY_NAME[name].rename
    weights = _filled(fixture) if fixture.kind == "fullsize" else fixture.weights
    model.load_state_dict(rename(weights), strict=True, assign=True)
    recorded = about["fp32_versus_fp64_max_relative_difference"]
    report.recorded = recorded.get("eval", recorded)
    with torch.no_grad():
        (_released_size if fixture.kind == "fullsize" else _forward)(model.eval(), images, fixture, report)
    if "train/total_loss" in fixture.io:
        report.recorded = recorded["train"]
        _training(model.train().requires_grad_(True), images, rename, fixture, report)


def _images(fixture: Fixture) -> Tensor:
    if fixture.kind == "tiny":
        return fixture.images()
    small = fixture.images("x_small")
    times = fixture.about["image_size"] // small.shape[-1]
    return small.repeat_interleave(times, 2).repeat_interleave(times, 3)


def _filled(fixture: Fixture) -> dict[str, Tensor]:
    """The weights by formula; the shapes are those of the contract of the same name."""
    keys = fixture.arguments("keys")
    with torch.device("meta"):
        shapes = {key: torch.empty(shape) for key, (shape, _) in keys.items() if not key.endswith("ema_vocab_hit_SV")}
    return filled(fixture.about, shapes)


def _forward(model: Tokenizer, images: Tensor, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    latents, _ = model.latents(images)
    quantized = model.quantizer(latents)
    codes = quantized.codes
    expected = io["pre_quant"]
    if expected.dim() == 5:  # branches of XQ-GAN, side by side; ours are one below the other
        report.close("encoder_tokens", model.encoder.tokens(images), io["encoder_tokens"])
        expected = expected.transpose(1, 2).flatten(2, 3)
    report.close("pre_quant", latents, expected, key="pre_quant")
    report.equal("indices", codes.flatten(), io["indices"].flatten())
    report.close("quantized", model.vectors(codes), io.get("f_hat", io.get("codebook_entry", io.get("quant"))))
    if "quant" in io:
        report.close("quant", quantized.vectors, io["quant"])
    decoded = model.decode(codes)
    for name, value in {
        "decoded": decoded, "decoded_from_code": decoded if "f_hat" not in io else decoded.clamp(-1, 1),
        "decoded_unclamped": decoded, "reconstructed": decoded.clamp(-1, 1),
        "decoded_crop": decoded[..., 96:160, 96:160], "reconstructed_crop": decoded.clamp(-1, 1)[..., 96:160, 96:160],
        "decoded_stats": torch.stack([decoded.mean((2, 3)), decoded.flatten(2).std(2)], dim=1),
    }.items():  # fmt: skip
        if name in io:
            report.close(name, value, io[name])
    if "indices_pre" in io:
        low = fixture.about["constructor_args"]["factorized_bits"][0]
        report.equal("indices_pre", codes.flatten() % 2**low, io["indices_pre"])
        report.equal("indices_post", codes.flatten() // 2**low, io["indices_post"])
    if "f_hat_scale_2" in io:
        partial = sum(model.quantizer.drawn(codes[:, first:last], number) for number, (first, last) in enumerate(
            ((0, 1), (1, 5), (5, 14))
        ))  # fmt: skip
        report.close("f_hat_scale_2", partial, io["f_hat_scale_2"])
        image = model.decode_vectors(partial).images.clamp(-1, 1)
        report.close("reconstructed_scale_2", image, io["reconstructed_scale_2"])
    if "other_patches/indices" in io:
        kept = model.quantizer.scales
        sides = fixture.about["other_patch_nums"]
        model.quantizer.scales = [(side, side) if isinstance(side, int) else tuple(side) for side in sides]
        codes = model.quantizer(latents).codes
        report.equal("other_patches/indices", codes, io["other_patches/indices"])
        vectors = model.quantizer.arrange(codes, *latents.shape[2:])
        image = model.decode_vectors(vectors).images.clamp(-1, 1)
        report.close("other_patches/reconstructed", image, io["other_patches/reconstructed"])
        model.quantizer.scales = kept


def _released_size(model: Tokenizer, images: Tensor, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    latents, _ = model.latents(images)
    codes = model.quantizer(latents).codes
    report.close("pre_quant_corner", latents[..., :4, :4], io["pre_quant_corner"])
    report.close("pre_quant_stats", _statistics(latents), io["pre_quant_stats"])
    margin = io["index_margin"].flatten()
    if "f_hat_corner" in io:  # one other code changes the rest of all later scales
        margin = torch.where((margin < 2e-5).cumsum(0) > 0, 0.0, margin)
        vectors = model.quantizer.arrange(io["indices"], *latents.shape[2:])
        report.close("f_hat_corner", vectors[..., :4, :4], io["f_hat_corner"])
    report.codes("indices", codes.flatten(), io["indices"].flatten(), margin)
    decoded = model.decode(io["indices"].view(1, -1))
    report.close("decoded_crop", decoded[..., 96:160, 96:160], io["decoded_crop"])
    report.close("decoded_stats", _statistics(decoded), io["decoded_stats"])


def _statistics(maps: Tensor) -> Tensor:
    return torch.stack([maps[0].mean((1, 2)), maps[0].std((1, 2))])


def _training(model: Tokenizer, images: Tensor, rename: Any, fixture: Fixture, report: Report) -> None:
    """One training pass: losses, and gradients under the released names."""
    io = fixture.io
    quantized = model.quantizer(model.latents(images)[0])
    losses = dict(quantized.losses)
    total = F.mse_loss(model.decode_vectors(quantized.vectors).images, images) + sum(losses.values())
    total.backward()
    got = {"total_loss": total}
    if "train/codebook_loss" in io:
        got["codebook_loss"] = losses["vq"] + losses["commit"]
    if "train/quant_loss" in io:
        got["quant_loss"] = losses["index"] + losses["vq"] + losses["commit"]
        got["entropy_loss"] = losses["entropy"] / 0.05
    elif "train/per_sample_entropy" in io:
        got |= {"commit_loss": losses["commit"] / 0.25, "entropy_loss": losses["entropy"] / 0.1}
    elif "f_hat" in io:
        got["vq_loss"] = losses["vq"] + losses["commit"]
    elif "train/commit_loss" in io:
        got |= {f"{name}_loss": value for name, value in losses.items()}
    for name, value in got.items():
        report.close(f"train/{name}", value, io[f"train/{name}"], key=name)
    _gradients(model, rename, fixture, report)


def _gradients(model: Tokenizer, rename: Any, fixture: Fixture, report: Report) -> None:
    """A released tensor that is several of ours (fused queries, keys, values) has their gradients in that order."""
    # Through an entropy at temperature 0.01 the originals' own gradients are that uncertain.
    tolerance = 1e-4 if "train/entropy_loss" in fixture.io else TOLERANCE
    order, own = fixture.about["grad_norm_parameter_order"], dict(model.named_parameters())
    numbered = rename({key: torch.full((3, 1), number) for number, key in enumerate(order)})
    parts: dict[str, list[Tensor]] = {key: [] for key in order}
    for key, number in numbered.items():
        if key in own:
            parts[order[int(number.flatten()[0])]].append(own[key].grad)
    missing = [key for key in order if not parts[key] or parts[key][0] is None]
    report.equal("without gradient", missing, [])
    gradients = {key: torch.cat(found) for key, found in parts.items()}
    norms = torch.stack([gradients[key].norm() for key in order])
    report.close("train/grad_norms", norms, fixture.io["train/grad_norms"], tolerance, "grad_norms")
    for name, expected in fixture.io.items():
        if name.startswith("train/grad/"):
            key = name.removeprefix("train/grad/")
            report.close(name, gradients[key], expected, tolerance, f"grad/{key}")
