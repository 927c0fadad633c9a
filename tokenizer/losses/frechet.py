"""The Frechet distance between features of reconstructions and of images, as something to train on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common import dist
from common.loop import autocast

__all__ = ["FrechetPull"]


class FrechetPull(nn.Module):
    """Pulls each feature vector to where the best map from all reconstructions' features to the images' puts it.

    The map between their Gaussians, T(f) = m_r + A (f - m_f), A = C_f^-1/2 (C_f^1/2 C_r C_f^1/2)^1/2 C_f^-1/2, gives
    the distance's gradient: 2/n (f - T(f)) for one of n vectors. So the mean of |f - T(f)|^2 over a batch, T held
    fixed, is a loss whose gradient is the distance's, without a matrix root in every step. Blurred images lack variance
    that A gives back; a loss per image cannot ask for it, as its best answer to what it does not know is the mean.

    A map that is followed for long overshoots: what is pulled to A f is then pulled to A A f. So it is computed often,
    and within the directions that the images vary in most, where that is cheap; elsewhere only the means are pulled.

    Means and covariances are averages over the images of the last steps, which are part of a run's state.
    Source: the map: Dowson and Landau 1982; the distance as a loss: Mathiasen and Hvilshoj 2020 (arXiv 2009.14075).
    """

    WINDOW = 4096
    """Images that the averages go back over."""
    FIRST = 1024
    """Images before the map is first computed: statistics of fewer would pull anywhere."""
    EVERY = 20
    """Steps between two computations of it."""
    DIRECTIONS = 384
    """Principal directions of the images' features that it is computed in."""
    RIDGE = 0.1
    """Added to both variances, as a share of the images' mean one: bounds A where reconstructions hardly vary."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.seen, self.age = 0, 0  # images so far; steps since the map was first computed
        for name in ("real", "fake"):
            self.register_buffer(f"{name}_mean", torch.zeros(features))
            self.register_buffer(f"{name}_square", torch.zeros(features, features))
        self.register_buffer("directions", torch.zeros(features, min(self.DIRECTIONS, features)))
        self.register_buffer("transport", torch.eye(features))

    @torch.no_grad()
    def watch(self, real: Tensor, fake: Tensor) -> None:
        """Take in this step's features (B, features) of the images and of their reconstructions, of all ranks."""
        real, fake = (torch.cat(dist.all_gather(each.detach().float())) for each in (real, fake))
        self.seen += len(real)
        share = len(real) / min(self.seen, self.WINDOW)
        with autocast("none", real.device):
            for name, found in (("real", real), ("fake", fake)):
                getattr(self, f"{name}_mean").lerp_(found.mean(dim=0), share)
                getattr(self, f"{name}_square").lerp_(found.T @ found / len(found), share)
            if self.seen >= self.FIRST:
                if self.age % self.EVERY == 0:
                    self.transport.copy_(self._map())
                self.age += 1

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen, "age": self.age}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen, self.age = state["seen"], state["age"]

    def _covariance(self, name: str) -> Tensor:
        mean = getattr(self, f"{name}_mean").double()
        return getattr(self, f"{name}_square").double() - mean.outer(mean)

    def _map(self) -> Tensor:
        real, fake = self._covariance("real"), self._covariance("fake")
        if self.age == 0:
            self.directions.copy_(torch.linalg.eigh(real)[1][:, -self.directions.shape[1] :])
        within = self.directions.double()
        ridge = self.RIDGE * real.trace() / self.features * torch.eye(within.shape[1], device=real.device)
        real, fake = within.T @ real @ within, within.T @ fake @ within
        values, vectors = torch.linalg.eigh(fake + ridge)
        roots = values.clamp(min=1e-12).sqrt()
        root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
        values, vectors = torch.linalg.eigh(root @ (real + ridge) @ root)
        found = inverse @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.T) @ inverse
        unmoved = torch.eye(self.features, device=real.device) - within @ within.T
        return unmoved + within @ found @ within.T

    def forward(self, fake: Tensor) -> Tensor:
        """Mean squared way of the features (B, features) to their places, in units of the images' total variance."""
        if self.age == 0:
            return 0 * fake.sum()  # with a gradient: it may be a step's only loss
        with autocast("none", fake.device):
            fake = fake.float()
            place = self.real_mean + (fake.detach() - self.fake_mean) @ self.transport
            variance = self.real_square.trace() - self.real_mean.square().sum()
            return (fake - place).square().sum(dim=1).mean() / variance
