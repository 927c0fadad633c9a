"""The adversarial game: a discriminator, its optimizer, and what the tokenizer gets from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common import dist, optim
from common.config import build
from common.dist import World
from common.loop import autocast
from tokenizer.config import AdversaryConfig
from tokenizer.losses.adversarial import hinge_discriminator, hinge_generator


class Adversary:
    """Hinge GAN from step `start` on. Source: VQGAN as configured by GigaTok; spec tokenizer 3.2."""

    def __init__(
        self, config: AdversaryConfig, optim_config: optim.OptimConfig, world: World, precision: str, parallel: str
    ):
        self.config, self.optim_config, self.world, self.precision = config, optim_config, world, precision
        self.module = build("tokenizer.discriminators:DISCRIMINATORS", config.discriminator).to(world.device)
        self.wrapped = dist.wrap(self.module, parallel, world)
        self.optimizer = optim.adamw(self.module, optim_config)

    def active(self, step: int) -> bool:
        return step >= self.config.start

    def generator_loss(self, recons: list[Tensor]) -> Tensor:
        """weight * -sum over views of mean D(recon); leaves no gradient in the discriminator."""
        self.module.requires_grad_(False)
        loss = sum(hinge_generator(self.module(recon).float()) for recon in recons)
        self.module.requires_grad_(True)
        return self.config.weight * loss

    def update(self, images: Tensor, recons: list[Tensor], step: int, steps: int) -> dict[str, Tensor]:
        """One discriminator step on real images and the step's (detached) reconstructions."""
        with autocast(self.precision, self.world.device):
            # One call each: batch norms must not mix real images and reconstructions.
            real, *fakes = (self.wrapped(view.detach()).float() for view in (images, *recons))
        loss = self.config.weight * sum(hinge_discriminator(real, fake) for fake in fakes)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.optim_config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.optim_config.max_grad_norm)
        optim.set_rate(self.optimizer, optim.rate(self.optim_config, step, steps))
        self.optimizer.step()
        return {
            "train/loss_discriminator": loss.detach(),
            "train/logits_real": real.detach().mean(),
            "train/logits_fake": torch.cat(fakes).detach().mean(),
        }

    def state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()
