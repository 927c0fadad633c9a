"""The Frechet distance between features of reconstructions and of images, as something to train on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common import dist
from common.numerics import autocast

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
        self.first: list[Tensor] = []  # features (2, B, features) of images and reconstructions before that
        count = min(self.DIRECTIONS, features)
        self.register_buffer("directions", torch.zeros(features, count))
        for name in ("real", "fake"):
            self.register_buffer(f"{name}_mean", torch.zeros(features))
            self.register_buffer(f"{name}_square", torch.zeros(count, count))  # within the directions
        self.register_buffer("norm", torch.zeros(()))  # the images' mean |f|^2
        self.register_buffer("stretch", torch.zeros(count, count))  # A - 1 within the directions

    @torch.no_grad()
    def watch(self, real: Tensor, fake: Tensor) -> None:
        """Take in this step's features (B, features) of the images and of their reconstructions, of all ranks."""
        both = torch.stack([torch.cat(dist.all_gather(each.detach().float())) for each in (real, fake)])
        self.seen += both.shape[1]
        with autocast("none", real.device):
            if self.age == 0:
                self.first.append(both)
                if self.seen < self.FIRST:
                    return
                both, self.first = torch.cat(self.first, dim=1), []
                self.directions.copy_(self._principal(both[0]))
            share = both.shape[1] / min(self.seen, self.WINDOW)
            for name, found in zip(("real", "fake"), both, strict=True):
                within = found @ self.directions
                getattr(self, f"{name}_mean").lerp_(found.mean(dim=0), share)
                getattr(self, f"{name}_square").lerp_(within.T @ within / len(within), share)
            self.norm.lerp_(both[0].square().sum(dim=1).mean(), share)
            if self.age % self.EVERY == 0:
                self.stretch.copy_(self._map())
            self.age += 1

    def get_extra_state(self) -> dict[str, int | list[Tensor]]:
        return {"seen": self.seen, "age": self.age, "first": self.first}

    def set_extra_state(self, state: dict[str, int | list[Tensor]]) -> None:
        self.seen, self.age = state["seen"], state["age"]
        self.first = [each.to(self.norm.device) for each in state["first"]]

    @property
    def variance(self) -> Tensor:
        """Total variance of the images' features."""
        return self.norm - self.real_mean.square().sum()

    def _principal(self, rows: Tensor) -> Tensor:
        return torch.linalg.eigh(torch.cov(rows.double().T))[1][:, -self.directions.shape[1] :]

    def _covariance(self, name: str) -> Tensor:
        mean = (getattr(self, f"{name}_mean") @ self.directions).double()
        return getattr(self, f"{name}_square").double() - mean.outer(mean)

    def _map(self) -> Tensor:
        one = torch.eye(len(self.stretch), device=self.stretch.device, dtype=torch.float64)
        ridge = self.RIDGE * self.variance / self.features * one
        values, vectors = torch.linalg.eigh(self._covariance("fake") + ridge)
        roots = values.clamp(min=1e-12).sqrt()
        root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
        values, vectors = torch.linalg.eigh(root @ (self._covariance("real") + ridge) @ root)
        return inverse @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.T) @ inverse - one

    def forward(self, fake: Tensor) -> Tensor:
        """Mean squared way of the features (B, features) to their places, in units of the images' total variance."""
        if self.age == 0:
            return 0 * fake.sum()  # with a gradient: it may be a step's only loss
        with autocast("none", fake.device):
            fake = fake.float()
            away = fake.detach() - self.fake_mean
            place = self.real_mean + away + away @ self.directions @ self.stretch @ self.directions.T
            return (fake - place).square().sum(dim=1).mean() / self.variance
