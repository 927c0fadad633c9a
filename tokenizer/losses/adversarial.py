"""Adversarial losses: what a discriminator minimises, what the tokenizer gets from it, and how both are balanced."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import dist


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 * (mean relu(1 - real) + mean relu(1 + fake)), of logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """-mean fake; `real` plays no part."""
    return -fake.mean()


def vanilla_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 * (mean softplus(-real) + mean softplus(fake)): cross-entropy. Also the non-saturating game's."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def non_saturating_generator(fake: Tensor, real: Tensor | None = None) -> Tensor:
    """mean softplus(-fake); `real` plays no part. Source: Goodfellow et al. 2014."""
    return F.softplus(-fake).mean()


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(real - fake)), image by image: real ones only have to look more real than their reconstruction.

    Source: Jolicoeur-Martineau 2018; with a gradient penalty on both sides R3GAN (Huang et al. 2024).
    """
    return F.softplus(fake - real).mean()


def relativistic_generator(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(-(fake - real))."""
    return F.softplus(real - fake).mean()


@dataclass(frozen=True)
class Game:
    """What the two sides minimise, of logits: `discriminator(real, fake)`, `generator(fake, real)`.

    `relative`: the generator's loss reads the real images' logits.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    relative: bool = False


GAMES = {
    "hinge": Game(hinge_discriminator, hinge_generator),
    "non_saturating": Game(vanilla_discriminator, non_saturating_generator),
    "relativistic": Game(relativistic_discriminator, relativistic_generator, relative=True),
}


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over images (B,3,H,W) of |gradient of the sum of an image's logits|^2; gradients flow through it.

    On real images it is R1, on generated ones R2. Source: Mescheder et al. 2018; R3GAN takes half of it, times gamma.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """|gradient of the reconstruction loss| / |gradient of the adversarial loss| at the decoder's last weight.

    Of the global batch, so all ranks get the same. Clamped to [0, 1e4], without gradient. Source: VQGAN, equation 7.
    """
    wanted, given = (
        dist.all_reduce_sum(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]) / dist.size()
        for loss in (reconstruction, adversarial)
    )
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(0.0, 1e4).detach()


class LeCam(nn.Module):
    """Penalises logits that move away from the running means of the other side's logits.

    `update` before `penalty`. The means start as the first batch's; before `settle` steps they follow each batch.
    Source: Tseng et al. 2021; GigaTok settles 1,000 steps after the discriminator's start with decay 0.99, RobusTok
    starts its means at 0 (`mean=0.0`) with decay 0.999 from the first step.
    """

    def __init__(self, decay: float = 0.999, settle: int = 0, mean: float = math.nan):
        super().__init__()
        self.decay, self.settle = decay, settle
        for name in ("real", "fake"):
            self.register_buffer(name, torch.tensor(mean, dtype=torch.float64))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor, step: int = 0) -> None:
        """Take in one batch of logits, averaged over ranks."""
        means = torch.stack([real.mean(), fake.mean()]).double()
        means = dist.all_reduce_sum(means) / dist.size()
        decay = self.decay if step >= self.settle else 0.0
        for held, mean in zip((self.real, self.fake), means, strict=True):
            held.copy_(torch.where(held.isnan(), mean, decay * held + (1 - decay) * mean))

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """mean relu(real - running fake)^2 + mean relu(running real - fake)^2."""
        return F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()
