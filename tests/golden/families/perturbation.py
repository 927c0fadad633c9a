"""RobusTok's latent perturbation with recorded random draws."""

from __future__ import annotations

import torch

from tests.golden.fixture import Fixture, Report
from tokenizer.quantizers.perturbation import Perturbation, perturb
from tokenizer.quantizers.vq import VectorQuantizer


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and {"alpha", "beta", "delta"} <= fixture.case


def check(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    size, dim = io["codebook"].shape
    for case, settings in fixture.about["cases"].items():
        config = VectorQuantizer.Config(codebook_size=size, codebook_dim=dim, l2_norm=settings["codebook_norm"])
        quantizer = VectorQuantizer(config)
        with torch.no_grad():
            quantizer.embedding.weight.copy_(io["codebook"])
        latents, vectors = io["z"].clone().requires_grad_(), io["z_q"].clone().requires_grad_()
        chosen = torch.arange(len(latents)) < int(len(latents) * settings["beta"])
        report.equal(f"{case}/perturbed", int(chosen.sum()), settings["perturbed_samples"])
        draws = (io[f"{case}/{name}"].view(len(latents), -1) for name in ("u", "j"))
        how = Perturbation(chosen, settings["alpha"], settings["delta"], *draws)
        out = perturb(quantizer, latents, vectors, quantizer(latents).codes, how)
        (out * io["r"]).sum().backward()
        report.close(f"{case}/out", out, io[f"{case}/out"])
        grad = torch.zeros_like(latents) if latents.grad is None else latents.grad  # no image was chosen
        report.close(f"{case}/grad_z", grad, io[f"{case}/grad_z"])
        report.close(f"{case}/grad_z_q", vectors.grad, io[f"{case}/grad_z_q"])
