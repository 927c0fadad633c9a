"""Scalar losses on fixed inputs, and the papers' whole objectives put together from our parts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.families.lpips import matches as is_lpips
from tests.golden.families.lpips import narrow
from tests.golden.fixture import Fixture, Report
from tokenizer.discriminators.patchgan import PatchGan
from tokenizer.losses import LOSSES
from tokenizer.losses.adversarial import (
    LeCam,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    vanilla_discriminator,
)
from tokenizer.losses.feature import contrastive_loss, mean_cosine
from tokenizer.losses.pixel import WeightConfig

CALLS_IN_TURN = "discriminator_loss_two_consecutive_calls"


def matches(fixture: Fixture) -> bool:
    return fixture.kind == "tiny" and "objective_results" in fixture.about


def check(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    real, fake = io["logits_real"], io["logits_fake"]
    for name, value in {
        "hinge_d": hinge_discriminator(real, fake), "vanilla_d": vanilla_discriminator(real, fake),
        "hinge_g": hinge_generator(fake), "proj/value": -mean_cosine(io["proj/inner"], io["proj/teacher"]).mean(),
    }.items():  # fmt: skip
        report.close(name, value, io[name])
    for name in [name for name in io if name.startswith("contrastive/scale_")]:
        scale = float(name.rpartition("_")[2])
        report.close(name, contrastive_loss(io["contrastive/a"], io["contrastive/b"], scale), io[name])
    last = io["adaptive/last_layer"].clone().requires_grad_()
    recon = F.conv2d(io["adaptive/feat"], last, padding=1)
    generator = -(recon * io["adaptive/dir"]).mean()
    weight = adaptive_weight(F.mse_loss(recon, io["adaptive/target"]), generator, last)
    report.close("adaptive/value", weight, io["adaptive/value"])
    _lecam(io, report, "lecam_gigatok", LeCam(decay=0.99, settle=10, mean=1000.0))
    _lecam(io, report, "lecam_robustok", LeCam(decay=0.999, mean=0.0))
    objective = Objective(fixture)
    for case, settings in fixture.about["objective_results"].items():
        if "table" in settings:
            objective.check_lecam_steps(case, settings["table"], report)
        else:
            objective.check(case, settings, report)


def _lecam(io: dict[str, Tensor], report: Report, name: str, lecam: LeCam) -> None:
    for row in io[f"{name}/table"]:
        step = int(row[0])
        real, fake = io[f"{name}/real_{step}"], io[f"{name}/fake_{step}"]
        lecam.update(real, fake, step)
        got = [step, lecam.real, lecam.fake, lecam.penalty(real, fake)]
        if len(row) == 5:
            got.insert(1, hinge_discriminator(real, fake))
        report.close(f"{name}/{step}", torch.tensor([float(value) for value in got]), row)


class Objective:
    """Generator and discriminator loss of one step. The perceptual net is the LPIPS fixture's, in evaluation mode."""

    def __init__(self, fixture: Fixture):
        self.io, self.constants = fixture.io, fixture.about["objective_constants"]
        self.weights = {key[5:]: value for key, value in fixture.weights.items() if key.startswith("disc.")}
        self.lpips = narrow(fixture.beside(is_lpips))

    def _start(self, overrides: dict[str, Any]) -> dict[str, Any]:
        settings = {**self.constants["base"], **overrides}
        self.discriminator = PatchGan(PatchGan.Config(channels=settings["disc_dim"]))
        self.discriminator.load_state_dict(self.weights)
        return settings

    def check(self, case: str, about: dict[str, Any], report: Report) -> None:
        settings, step, io = self._start(about["overrides"]), about["global_step"], self.io
        gigatok = case.startswith("giga")
        images, last = io["objective/x"], io["objective/last_layer"].clone().requires_grad_()
        recon = F.conv2d(io["objective/feat"], last, padding=1)
        early = gigatok and step < settings["aux_loss_end"]
        direct = io["objective/direct"] if early and settings["use_direct_rec_loss"] else None
        balance = settings["disc_weight"] if step >= settings["disc_start"] else 0.0
        parts = self._generator_parts(settings, images, recon, last, direct, balance)
        names = ("vq", "commit", "entropy")
        quantizer = dict(zip(names, about.get("codebook_losses", self.constants["codebook_losses"]), strict=False))
        if step >= settings.get("entropy_loss_end", step + 1):
            quantizer["entropy"] = 0.0
        parts |= {f"{name}_loss": torch.tensor(value) for name, value in quantizer.items()}
        total = sum(value for name, value in parts.items() if name != "disc_adaptive_weight")
        if gigatok:
            parts["proj_loss"] = -mean_cosine(io["objective/inner"], io["objective/sem"]).mean()
            total = total + settings["proj_weight"] * parts["proj_loss"]
            total = total + (self.constants["feature_rec_loss"] if early else 0.0)
        else:
            total = total + about["sem_loss"]
        for name, expected in about["generator_parts"].items():
            if name in parts:
                report.close(f"{case}/{name}", parts[name], torch.tensor(expected))
        report.close(f"{case}/generator_loss", total, torch.tensor(about["generator_loss"]))
        (gradient,) = torch.autograd.grad(total, last)
        report.close(f"{case}/grad_last_layer", gradient, io[f"objective/{case}/grad_last_layer"])
        fakes = [recon.detach(), *([] if direct is None else [direct])]
        if gigatok:
            loss = balance * sum(self._judge(images, fake)[0] for fake in fakes)
            report.close(f"{case}/discriminator_loss", loss, torch.tensor(about["discriminator_loss"]))
            return
        lecam = LeCam(decay=0.999, mean=0.0)
        for call, expected in enumerate(about[CALLS_IN_TURN]):
            hinge, real, fake = self._judge(images, fakes[0])
            lecam.update(real, fake)
            loss = balance * (hinge + settings.get("lecam_loss_weight", 0.0) * lecam.penalty(real, fake))
            report.close(f"{case}/discriminator_loss_{call}", loss, torch.tensor(expected))

    def _generator_parts(
        self, settings: dict[str, Any], images: Tensor, recon: Tensor, last: Tensor, direct: Tensor | None,
        balance: float,
    ) -> dict[str, Tensor]:
        pixel = LOSSES[settings["reconstruction_loss"]](WeightConfig(settings["reconstruction_weight"]))
        factor = settings["perceptual_weight"]
        parts = {"rec_loss": pixel(recon, images), "perceptual_loss": factor * self.lpips(images, recon).mean()}
        adversarial = hinge_generator(self.discriminator(recon))
        adaptive = torch.ones(())
        if settings.get("disc_adaptive_weight"):
            adaptive = adaptive_weight(parts["rec_loss"] + parts["perceptual_loss"], adversarial, last)
        parts |= {"disc_adaptive_weight": adaptive, "generator_adv_loss": adaptive * balance * adversarial}
        if direct is not None:
            parts["direct_rec_loss"] = pixel(direct, images)
            parts["direct_p_loss"] = factor * self.lpips(images, direct).mean()
            parts["direct_adv_loss"] = adaptive * balance * hinge_generator(self.discriminator(direct))
        return parts

    def _judge(self, images: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        real_logits, fake_logits = self.discriminator(images), self.discriminator(fake)
        return hinge_discriminator(real_logits, fake_logits), real_logits, fake_logits

    def check_lecam_steps(self, case: str, table: list[list[float]], report: Report) -> None:
        """GigaTok's discriminator with LeCam: both kinds of fakes move the means, before the penalty is taken."""
        settings, io = self._start({}), self.io
        recon = F.conv2d(io["objective/feat"], io["objective/last_layer"], padding=1)
        lecam = LeCam(decay=0.99, settle=settings["disc_start"] + 1000, mean=1000.0)
        for step, *expected in table:
            loss, penalised = torch.zeros(()), []
            for fake in (recon, io["objective/direct"]):
                hinge, real, judged = self._judge(io["objective/x"], fake)
                lecam.update(real, judged, int(step))
                loss = loss + settings["disc_weight"] * hinge
                penalised.append((real, judged))
            if step > settings["disc_start"]:
                loss = loss + 0.001 * lecam.penalty(*penalised[0])
            report.close(f"{case}/{step}", torch.tensor([loss.item(), lecam.real, lecam.fake]), torch.tensor(expected))
