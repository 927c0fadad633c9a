"""Adversarial training: a discriminator, its optimizer, and the loss it gives the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import checkpoint, optim, parallel
from common.config import build
from common.dist import World
from common.errors import UserError
from common.numerics import autocast, place
from tokenizer.config import AdversaryConfig
from tokenizer.losses.adversarial import GAMES, LeCam, adaptive_weight, gradient_penalty


class Adversary:
    """A GAN from step `start` on. Source: VQGAN (Esser et al. 2021) as configured by GigaTok.

    Generator: weight * (adaptive weight, or 1) * sum over views of the game's loss.
    Discriminator: weight * (sum over views of the game's loss + LeCam + penalty/2 * (R1 + sum over views of R2)).

    Raises: UserError for an unknown `loss`, or an `init` without a discriminator.
    """

    def __init__(self, config: AdversaryConfig, optim_config: optim.OptimConfig, world: World, precision: str):
        self.config, self.world, self.precision = config, world, precision
        self.optim_config, self.first = (config.optim, config.start) if config.optim else (optim_config, 0)
        if config.loss not in GAMES:
            raise UserError(f"adversary.loss got {config.loss!r}; expected {', '.join(GAMES)}")
        self.game = GAMES[config.loss]
        self.module = build("tokenizer.discriminators:DISCRIMINATORS", config.discriminator)
        if config.init:
            found = checkpoint.resolve_folder(config.init)
            if not (found / "discriminator.safetensors").is_file():
                raise UserError(f"adversary.init: {str(found)!r} holds no discriminator; set adversary.init=null")
            checkpoint.load_into(self.module, checkpoint.read_weights(found, "discriminator"), config.init)
        self.wrapped = parallel.replicate(place(self.module, world.device), world)  # too small to be worth sharding
        self.optimizer = optim.adamw(self.module, self.optim_config)
        self.lecam = LeCam(config.lecam.decay, config.lecam.settle).to(world.device) if config.lecam else None

    def active(self, step: int) -> bool:
        return step >= self.config.start

    def generator_loss(
        self, images: Tensor, recons: list[Tensor], reconstruction: Tensor, last_layer: nn.Parameter
    ) -> dict[str, Tensor]:
        """The tokenizer's weighted loss; leaves no gradient in the discriminator.

        `reconstruction`: the sum of the losses that the adaptive weight balances this one with, at `last_layer`, the
        decoder's last weight.
        """
        self.module.requires_grad_(False)
        with torch.no_grad():
            real = self.module(images).float() if self.game.relative else None
        loss = sum(self.game.generator(self.module(recon).float(), real) for recon in recons)
        self.module.requires_grad_(True)
        if not self.config.adaptive:
            return {"adversarial": self.config.weight * loss}
        if not last_layer.requires_grad:
            raise UserError("adversary.adaptive=true measures gradients at the decoder's last layer, which is frozen")
        factor = adaptive_weight(reconstruction, loss, last_layer)
        return {"adversarial": self.config.weight * factor * loss, "weight@adversarial": factor}

    def backward(
        self, images: Tensor, recons: list[Tensor], step: int
    ) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Gradients of the discriminator on real images and the step's (detached) reconstructions.

        Returns loss and gradient norm, which must be finite for an update, and scalars to log.
        """
        penalised = self.config.penalty > 0
        views = [view.detach().requires_grad_(penalised) for view in (images, *recons)]
        # Second-order gradients need full precision and unfused attention; fused kernels do not support them.
        written_out = sdpa_kernel(SDPBackend.MATH) if penalised else nullcontext()
        with autocast("none" if penalised else self.precision, self.world.device), written_out:
            # Separate calls: batch norms must not mix real images and reconstructions.
            logits = [self.wrapped(view).float() for view in views]
        real, fakes = logits[0], logits[1:]
        losses = {"discriminator": sum(self.game.discriminator(real, fake) for fake in fakes)}
        if self.lecam:
            self.lecam.update(real, torch.cat(fakes), step - self.config.start)
            losses["lecam"] = self.config.lecam.weight * self.lecam.penalty(real, torch.cat(fakes))
        if penalised:
            squared = sum(gradient_penalty(given, view) for given, view in zip(logits, views, strict=True))
            losses["gradient_penalty"] = self.config.penalty / 2 * squared
        self.optimizer.zero_grad(set_to_none=True)
        self.total = self.config.weight * sum(losses.values())
        self.total.backward()
        self.total = self.total.detach()
        norm = parallel.clip_gradients(self.module.parameters(), 0)
        return (self.total, norm), {
            **{f"train/loss_{name}": self.config.weight * loss.detach() for name, loss in losses.items()},
            "train/logits_real": real.detach().mean(),
            "train/logits_fake": torch.cat(fakes).detach().mean(),
        }

    def update(self, step: int, steps: int, skip: Tensor) -> None:
        """Apply the gradients of `backward`, unless `skip` is 1.0."""
        taken = (step - self.first, steps - self.first)
        optim.update(self.optimizer, self.optim_config, *taken, self.total, skip=skip)

    def kept(self) -> Iterable[Tensor]:
        """The tensors that `backward` changes: batch statistics and LeCam's means."""
        return (*self.module.buffers(), *(self.lecam.buffers() if self.lecam else ()))

    def state(self) -> dict[str, Any]:
        """All state except the discriminator's weights."""
        return {"optimizer": self.optimizer.state_dict(), "lecam": self.lecam.state_dict() if self.lecam else None}

    def load(self, state: dict[str, Any]) -> None:
        optim.restore(self.optimizer, state["optimizer"])
        if self.lecam and state["lecam"]:
            self.lecam.load_state_dict(state["lecam"])
