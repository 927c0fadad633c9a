"""The quantizers of Open-MAGVIT2, IBQ, taming's VQGAN, VAR and XQ-GAN alone: values, losses, gradients."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tests.golden.fixture import Fixture, Report, Skip
from tokenizer.quantizers import QUANTIZERS
from tokenizer.quantizers.base import Quantizer

LEGACY = {"codebook_weight": 0.25, "commit_weight": 1.0}
PHI = re.compile(r"^quant_resi\.(?:qresi_ls\.)?(?:qresi\.)?(?:(\d+)\.)?")
OPTIONAL = ("binary_scaled", "binary_full_entropy")
"""Cases that exercise options which no released configuration has."""


def matches(fixture: Fixture) -> bool:
    about = fixture.about
    if fixture.kind != "tiny" or not isinstance(about.get("cases"), dict) or "constructor_args" in about:
        return False
    return "bits" in about or "patch_nums" in about or bool({"use_entropy_loss", "legacy"} & fixture.case)


def parts(fixture: Fixture) -> list[str]:
    """The fixture as a whole, and each optional case, so that what is not checked is printed."""
    return ["", *(case for case in fixture.about["cases"] if case in OPTIONAL)]


def check(fixture: Fixture, report: Report) -> None:
    if fixture.part:
        raise Skip("OPTIONAL: scaled binary codes and a full entropy are in no released XQ-GAN, so not built here")
    about = fixture.about
    for case, settings in about["cases"].items():
        if case in OPTIONAL:
            continue
        report.recorded = {f"{case}/{key}": value for key, value in settings["fp32_vs_fp64"].items()}
        if "f" in fixture.io:
            _scales(case, settings, about, fixture.io, report)
        elif "bits" in about:
            _lookup_free(case, settings, about, fixture.io, report)
        else:
            _codebook(case, settings, fixture.io, report)


def _made(name: str, **options: Any) -> Quantizer:
    part = QUANTIZERS[name]
    return part(part.Config(**options))


def _backward(quantizer: Quantizer, io: dict[str, Tensor], latents: Tensor, **options: Any) -> Any:
    """The training pass whose gradients are stored."""
    done = quantizer(latents, **options)
    ((done.vectors * io["r"]).sum() + sum(done.losses.values())).backward()
    return done


def _lookup_free(case: str, settings: dict, about: dict, io: dict[str, Tensor], report: Report) -> None:
    quantizer = _made("lfq", codebook_size=2 ** about["bits"])
    latents = io["z"].clone().requires_grad_()
    done = _backward(quantizer, io, latents)
    codes = done.codes.flatten()
    for name, value in {
        "quant": done.vectors, "grad_z": latents.grad, "entropy_loss": done.losses["entropy"] / 0.1,
        "commit_loss": done.losses["commit"] / 0.25,
    }.items():  # fmt: skip
        report.close(f"{case}/{name}", value, io[f"{case}/{name}"])
    if "factorized_bits" in settings:
        low = settings["factorized_bits"][0]
        report.equal(f"{case}/pre", codes % 2**low, io[f"{case}/indices_pre"])
        report.equal(f"{case}/post", codes // 2**low, io[f"{case}/indices_post"])
    else:
        report.equal(f"{case}/indices", codes, io[f"{case}/indices"])
        report.close(f"{case}/entry", quantizer.arrange(done.codes, *latents.shape[2:]), io[f"{case}/entry"])


def _codebook(case: str, settings: dict, io: dict[str, Tensor], report: Report) -> None:
    size, dim = io["codebook"].shape
    options = {"codebook_size": size, "codebook_dim": dim, "l2_norm": False, "rotation": False}
    ibq = "use_entropy_loss" in settings
    if ibq:
        options |= {**LEGACY, "codebook_weight": settings["beta"]}
        options["entropy_weight"] = 0.05 * settings["use_entropy_loss"]
    elif settings["legacy"]:
        options |= LEGACY
    quantizer = _made("ibq" if ibq else "vq", **options)
    quantizer.embedding.weight.data.copy_(io["codebook"])
    latents = io["z"].clone().requires_grad_()
    done = _backward(quantizer, io, latents)
    entropy = done.losses.pop("entropy", None)
    got = {
        "quant": done.vectors, "quant_loss" if ibq else "loss": sum(done.losses.values()),
        "grad_z": latents.grad, "grad_embedding": quantizer.embedding.weight.grad.clone(),
    }  # fmt: skip
    if ibq:
        again = io["z"].clone().requires_grad_()
        (quantizer(again).vectors * io["r"]).sum().backward()
        got["grad_z_through_index"] = again.grad
    if entropy is not None:
        got["entropy_loss"] = entropy / 0.05
    for name, value in got.items():
        report.close(f"{case}/{name}", value, io[f"{case}/{name}"])
    report.equal(f"{case}/indices", done.codes.flatten(), io[f"{case}/indices"])
    report.equal(f"{case}/indices in evaluation", quantizer.eval()(io["z"]).codes.flatten(), io[f"{case}/indices"])


def _scales(case: str, settings: dict, about: dict, io: dict[str, Tensor], report: Report) -> None:
    scales = about["patch_nums"]
    xqgan, binary = "kind" in settings, settings.get("kind") == "lfq"
    options = {"scales": scales, "smoothers": settings.get("share_quant_resi", 4)}
    options["smoothing"] = abs(settings.get("quant_resi", 0.5))  # the original takes the absolute value
    options["commit_weight"] = about["beta"] * (len(scales) if xqgan and not binary else 1)
    weights = {key.partition("/w/")[2]: value for key, value in io.items() if key.startswith(f"{case}/w/")}
    if binary:
        quantizer = _made("binary_multi_scale", codebook_size=2 ** io["f"].shape[1], **options)
        quantizer.shares = lambda here: torch.bincount(here.long(), minlength=len(here)) / len(here)  # the original's
    else:
        size, dim = weights["embedding.weight"].shape
        norm = settings["using_znorm"]
        quantizer = _made("multi_scale", codebook_size=size, codebook_dim=dim, l2_norm=norm, **options)
    named = {PHI.sub(lambda found: f"smoothers.{found[1] or 0}.", key): value for key, value in weights.items()}
    missing, unexpected = quantizer.load_state_dict(named, strict=False)
    report.equal(f"{case}/keys", [missing, unexpected], [["codebook_used"], []])
    latents = io["f"].clone().requires_grad_()
    kept = torch.full((len(latents),), len(scales))
    if xqgan:
        dropped = int(len(latents) * settings["codebook_drop"])
        kept[:dropped] = torch.tensor(settings["dropout_scales"][:dropped])
    done = _backward(quantizer, io, latents, kept_scales=kept)
    got = {"f_hat_train": done.vectors, "grad_f": latents.grad}
    if xqgan:
        got |= {f"{name}_loss": value for name, value in done.losses.items()}
    else:
        got["vq_loss"] = done.losses["vq"] + done.losses["commit"]
    if not binary:
        got["grad_embedding"] = quantizer.embedding.weight.grad
    gradients = [value.grad.flatten() for value in quantizer.smoothers.parameters() if value.grad is not None]
    if gradients:
        got["grad_phi"] = torch.cat(gradients)
    with torch.no_grad():
        codes = quantizer.eval()(io["f"]).codes
        parts = codes.split([side**2 for side in scales], dim=1)
        sums = torch.stack([quantizer.drawn(part, number) for number, part in enumerate(parts)], dim=1).cumsum(1)
    got["f_hats"] = sums
    report.equal(f"{case}/indices", codes, io[f"{case}/indices"])
    for name, value in got.items():
        report.close(f"{case}/{name}", value, io[f"{case}/{name}"])
