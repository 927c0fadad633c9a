"""The ways to be wrong that pFID measures: codes swapped for near ones, or noise on vectors that have no codes.

Source: RobusTok (arXiv 2503.08354) as far as it says; spec robustok 6.3. The noise is an extension of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.errors import UserError
from evaluations.pfid import PfidConfig
from tokenizer.model import Tokenizer
from tokenizer.quantizers.perturbation import NEIGHBOURS, nearest_codes

__all__ = ["Cell", "CodeSwaps", "LatentNoise", "NoisyCell", "is_continuous", "make_cells", "perturb_codes"]


class Cell(NamedTuple):
    """One way to decode: the first `num_tokens` codes, redrawn with chance `alpha` among the `delta` nearest."""

    num_tokens: int
    alpha: float
    delta: int


class NoisyCell(NamedTuple):
    """The same without codes: noise of `rho` times each channel's standard deviation on the first `num_tokens`."""

    num_tokens: int
    rho: float


def is_continuous(tokenizer: Tokenizer) -> bool:
    return tokenizer.config.quantizer["name"] == "kl"


def make_cells(config: PfidConfig, tokenizer: Tokenizer) -> list[Cell] | list[NoisyCell]:
    """All combinations asked for, and at every length first the unperturbed one.

    Raises: UserError for an empty grid or numbers outside their range.
    """
    most = tokenizer.num_tokens
    lengths = sorted(set(config.num_tokens)) or [most]
    _check("num-tokens", lengths, 1, most)
    if is_continuous(tokenizer):
        _check("rhos", config.rhos, 0, float("inf"))
        return [NoisyCell(k, rho) for k in lengths for rho in (0.0, *config.rhos)]
    size, quantizer = tokenizer.codebook_size, _groups(tokenizer)[0]
    if config.neighbours not in NEIGHBOURS:
        raise UserError(f"--neighbours got {config.neighbours!r}; expected {' or '.join(NEIGHBOURS)}")
    if config.neighbours == "latent" and (not hasattr(quantizer, "rows") or hasattr(quantizer, "scales")):
        name = tokenizer.config.quantizer["name"]
        raise UserError(f"a {name} quantizer has no latent per code to be near to; pass --neighbours code")
    deltas = [round(delta * size) if delta < 1 else int(delta) for delta in config.deltas]
    _check("alphas", config.alphas, 0, 1)
    _check("deltas", deltas, 1, size)
    asked = dict.fromkeys((alpha, delta) for alpha in config.alphas for delta in deltas)
    return [Cell(k, alpha, delta) for k in lengths for alpha, delta in ((0.0, 1), *asked)]


def _check(name: str, values: list[Any], low: float, high: float) -> None:
    wrong = [value for value in values if not low <= value <= high]
    if wrong or not values:
        raise UserError(f"--{name} holds {wrong[:1] or 'nothing'}; expected numbers from {low} to {high}")


def _groups(tokenizer: Tokenizer) -> list[torch.nn.Module]:
    """The quantizers with a codebook of their own; a product quantizer has several."""
    return list(getattr(tokenizer.quantizer, "parts", [tokenizer.quantizer]))


def perturb_codes(codes: Tensor, near: Tensor, alpha: float, delta: int, draws: Tensor) -> Tensor:
    """codes (B,L), each with chance alpha redrawn among the first `delta` of its near codes (B,L,D), D >= delta.

    draws: uniform numbers in [0,1), (2,B,L): the first decide which codes, the second what they become.
    """
    ranks = (draws[1] * delta).long()
    drawn = near.gather(2, ranks.unsqueeze(2)).squeeze(2)
    return torch.where(draws[0] < alpha, drawn, codes)


class CodeSwaps:
    """Images (B,3,H,W) with their numbers in the folder -> what every cell decodes, in the cells' order."""

    def __init__(self, config: PfidConfig, tokenizer: Tokenizer, cells: list[Cell]) -> None:
        self.tokenizer, self.cells, self.seed = tokenizer, cells, config.seed
        self.widest, self.groups = max(cell.delta for cell in cells), _groups(tokenizer)
        self.tables = (
            [nearest_codes(group, group.codebook(), self.widest) for group in self.groups]
            if config.neighbours == "code" else []
        )

    def __call__(self, indices: np.ndarray, images: Tensor) -> Iterator[Tensor]:
        codes, near = self._near(images)
        uniform = _drawn(self.seed, indices, lambda rng: rng.random((2, codes.shape[1]), np.float32), codes.device)
        for cell in self.cells:
            wrong = perturb_codes(codes, near, cell.alpha, cell.delta, uniform.transpose(0, 1))
            yield self.tokenizer.decode(wrong[:, : cell.num_tokens])

    def _near(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B,L) of the images and the codes near each of them (B,L,widest), in every group by itself."""
        most = self.tokenizer.num_tokens
        latents, _ = self.tokenizer.latents(images)
        codes = self.tokenizer.quantizer(latents).codes
        if self.tables:
            split = zip(self.tables, codes.chunk(len(self.groups), dim=1), strict=True)
            near = [table[own] for table, own in split]
        else:
            split = zip(self.groups, latents.chunk(len(self.groups), dim=2), strict=True)
            rows = [nearest_codes(group, group.rows(own), self.widest) for group, own in split]
            near = [each.unflatten(0, (len(images), -1)) for each in rows]
        return codes[:, :most], torch.cat(near, dim=1)[:, :most]


class LatentNoise:
    """As `CodeSwaps`, for a continuous tokenizer. `batches`: all images of this process, which are looked through
    once for the deviation of every channel over images and positions."""

    def __init__(
        self, config: PfidConfig, tokenizer: Tokenizer, cells: list[NoisyCell], batches: Iterable[Tensor]
    ) -> None:
        self.tokenizer, self.cells, self.seed = tokenizer, cells, config.seed
        sums = torch.zeros(3, tokenizer.codebook_dim, dtype=torch.float64)
        for images in batches:
            vectors = tokenizer.encode_vectors(images).double().transpose(0, 1).flatten(1).cpu()
            sums += torch.stack([torch.ones_like(vectors).sum(1), vectors.sum(1), vectors.square().sum(1)])
        count, first, second = sum(dist.gather_objects(sums))
        self.deviation = (second / count - (first / count) ** 2).clamp(min=0).sqrt().float()

    def __call__(self, indices: np.ndarray, images: Tensor) -> Iterator[Tensor]:
        vectors = self.tokenizer.encode_vectors(images)
        shape = vectors.shape[1:]
        noise = _drawn(self.seed, indices, lambda rng: rng.standard_normal(shape, np.float32), vectors.device)
        spread = self.deviation.to(vectors.device)[:, None, None] * noise
        for cell in self.cells:
            kept = cell.num_tokens if self.tokenizer.is_1d else None
            yield self.tokenizer.decode_vectors(vectors + cell.rho * spread, kept).images


def _drawn(
    seed: int, indices: np.ndarray, draw: Callable[[np.random.Generator], np.ndarray], device: torch.device
) -> Tensor:
    """One draw per image, which depends on the seed and the image's number alone."""
    rngs = (np.random.Generator(np.random.Philox(key=[seed, index])) for index in indices)
    return torch.from_numpy(np.stack([draw(rng) for rng in rngs])).to(device)
