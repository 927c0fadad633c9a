"""The vector quantizer alone: values, losses and gradients for every combination of its options."""

from __future__ import annotations

import torch

from tests.golden.fixture import Fixture, Report
from tokenizer.quantizers.vq import VectorQuantizer, entropy_loss


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and {"l2_norm", "rot"} <= fixture.case


def check(fixture: Fixture, report: Report) -> None:
    about, io = fixture.about, fixture.io
    for case, settings in about["cases"].items():
        report.recorded = {f"{case}/{key}": value for key, value in settings["fp32_vs_fp64"].items()}
        _case(case, settings, about["definition"], io, report)
    report.recorded = {}
    for name in [name for name in io if name.startswith("entropy_fn/T")]:
        temperature = float(name.partition("/T")[2])
        report.close(name, entropy_loss(-io["entropy_fn/affinity"], temperature), io[name])


def _case(case: str, settings: dict, definition: dict, io: dict[str, torch.Tensor], report: Report) -> None:
    codebook = io["codebook"]
    quantizer = VectorQuantizer(VectorQuantizer.Config(
        codebook_size=codebook.shape[0], codebook_dim=codebook.shape[1], l2_norm=settings["l2_norm"],
        commit_weight=definition["beta"], entropy_weight=settings["entropy_loss_ratio"], rotation=settings["rot"],
    ))  # fmt: skip
    with torch.no_grad():
        quantizer.embedding.weight.copy_(codebook)
        quantizer.codebook_used.zero_()  # as the reference starts; ours marks what was never filled
    latents = io["z"].clone().requires_grad_()
    done = quantizer(latents)
    through = (done.vectors * io["r"]).sum()
    (straight,) = torch.autograd.grad(through, latents, retain_graph=True)
    (through + sum(done.losses.values())).backward()
    losses = {"entropy": torch.zeros(()), **done.losses}
    report.equal(f"{case}/indices", done.codes.flatten(), io[f"{case}/indices"])
    entry = quantizer.lookup(done.codes).transpose(1, 2).reshape(latents.shape)
    usage = quantizer.usage()
    got = {
        "zq": done.vectors, **losses, "usage": usage, "grad_z_ste": straight, "grad_z_total": latents.grad,
        "grad_codebook_total": quantizer.embedding.weight.grad, "zq_eval": quantizer.eval()(latents).vectors,
        "entry": entry,
    }  # fmt: skip
    for name, value in got.items():
        report.close(f"{case}/{name}", value, io[f"{case}/{name}"])
