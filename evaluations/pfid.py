"""pFID: robustness of a decoder to wrong codes, as FID of reconstructions from perturbed codes.

    bash scripts/eval_pfid.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --gt-npz-path VAL.npz

With probability alpha each code of each image is redrawn among the delta codes nearest to it, itself included; FID is
measured for every (alpha, delta), and pFID is the mean. `--frechet fd_efficientnet_lite2` measures the same on embedded
features and calls it pfd_efficientnet_lite2. The settings behind published pFIDs are not known: the default grid is our
own, so compare only figures of one grid. For a continuous tokenizer, which has no codes, Gaussian noise is added to the
vectors, and the figure is called pfid_c. Writes `<sample-dir>/results.json` with every cell and the unperturbed rFID.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoregressive.paper_flags import COMMON_FLAGS
from common import config, dist
from common.config import opt
from common.data import share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels
from common.numerics import autocast, numpy_generator
from common.options import PRECISIONS
from evaluations import harness, record
from evaluations.harness import DecodingConfig, ImageSets
from tokenizer.model import Tokenizer
from tokenizer.quantizers.perturbation import NEIGHBOURS, nearest_codes


@dataclass
class PfidConfig(DecodingConfig):
    sample_dir: str = opt("results/pfid", "where results go")
    alphas: list[float] = opt([0.5, 0.7, 0.9], "probabilities that a code is redrawn")
    deltas: list[float] = opt([0.02, 0.05], "nearest codes to draw from: a number, or below 1 a share of the codebook")
    neighbours: str = opt("code", "nearest to the chosen code (the paper's text) | to the latent (RobusTok's training)")
    rhos: list[float] = opt(
        [0.1, 0.2, 0.4], "continuous tokenizers: noise, as a fraction of each channel's standard deviation"
    )
    seed: int = opt(0, "the draws for image i depend only on the seed and i")
    precision: str = opt("none", "none = fp32, bf16 = autocast", PRECISIONS)


FLAGS: dict[str, config.Alias] = {"quant-way": COMMON_FLAGS["quant-way"], "global-seed": "seed"}


NOT_IN_QUESTION = {
    "sample_dir": "where results go", "device": "equal up to rounding", "per_proc_batch_size": "speed",
    "num_workers": "speed", "eval_python_path": "the engine that it selects is in the question",
}
"""Options that do not change the figures, with the reason."""

VERSION = 2


def run(config: PfidConfig) -> dict[str, Any]:
    """Measure, write `results.json` and return it; an earlier result is reused for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: PfidConfig, world: World) -> dict[str, Any]:
    path = Path(config.sample_dir) / "results.json"
    if not config.frechet and not config.gt_npz_path:
        raise UserError("nothing to measure; give --gt-npz-path FILE.npz or --frechet NAME")
    tokenizer = harness.load_tokenizer(
        config.vq_ckpt, config.weights, world, config.model_config, config.image_size
    )
    extractor = harness.load_extractor(config.frechet, world.device)
    cells = make_cells(config, tokenizer)
    dataset, count = harness.open_crops(config.data_path, tokenizer.image_size, config.num_images)
    question = harness.question(
        config, "pfid", VERSION, NOT_IN_QUESTION, images=count, files=record.files_key(dataset.files(count)),
        cells=[cell._asdict() for cell in cells], tokenizer=record.checkpoint(config.vq_ckpt, config.weights),
        networks={extractor.name: record.weights_key(extractor.network)} if extractor else {},
        **harness.reference_sources(config, config.sample_dir, "reconstruction"),
    )

    def measure() -> harness.Measured | None:
        mine = share(count, world.rank, world.size)
        workers = (config.per_proc_batch_size, config.num_workers)
        views: CodeSwaps | LatentNoise
        if tokenizer.quantizer.continuous:
            given = harness.visit(dataset, mine, "deviations", *workers)
            images = (from_pixels(each["pixels"].to(world.device)) for each in given)
            views = LatentNoise(config, tokenizer, cells, images)
        else:
            views = CodeSwaps(config, tokenizer, cells)
        # One file per cell; the unperturbed one may occur again among those that were asked for.
        files = {number: Path(config.sample_dir) / f"cell_{number:03d}.npz" for number in range(len(cells))}
        sets = ImageSets(world, files, extractor, bool(config.gt_npz_path))
        with torch.inference_mode():
            for batch in harness.visit(dataset, mine, "pfid", *workers):
                originals = from_pixels(batch["pixels"]).to(world.device)
                sets.add_originals(originals)
                for number, view in enumerate(views(batch["index"].numpy(), originals)):
                    decoded = to_pixels(view)
                    sets.add(number, from_pixels(torch.from_numpy(decoded)).to(world.device), decoded)
        sets.gather()
        if not world.is_main:
            return None
        if config.gt_npz_path:
            sets.compare_with(config, question["engine"])
        results = summarise(config, tokenizer, cells, sets, count)
        return results, dict.fromkeys([*record.few_images(count), *sets.flags]), None

    results = harness.answer(path, question, world, measure)
    if world.is_main:
        for k, found in results["tokens"].items():
            print(f"{k:>4} tokens: " + "  ".join(f"{name} {value:.4f}" for name, value in found["mean"].items()))
        print(f"results: {path}")
    return results


def summarise(
    config: PfidConfig, tokenizer: Tokenizer, cells: list[Cell] | list[NoisyCell], sets: ImageSets, count: int
) -> dict[str, Any]:
    """Figures of every cell and their mean for every number of tokens; deletes the cells' `.npz`."""
    continuous, tokens = tokenizer.quantizer.continuous, {}
    for number, cell in enumerate(cells):
        found: dict[str, float] = {}
        if sets.extractor:
            found[config.frechet] = sets.distance(number)
        if config.gt_npz_path:
            about = {"kind": "reconstruction", **cell._asdict()}
            found["fid"] = sets.pack(number, count, tokenizer.image_size, about)["fid"]
            sets.files[number].unlink()
        if str(cell.num_tokens) not in tokens:  # the first cell of a length is the unperturbed one
            unperturbed = {"rfid" if name == "fid" else name: value for name, value in found.items()}
            tokens[str(cell.num_tokens)] = {"unperturbed": unperturbed, "cells": [], "mean": {}}
            continue
        about = {key: value for key, value in cell._asdict().items() if key != "num_tokens"}
        if not continuous:
            about["delta_share"] = cell.delta / tokenizer.codebook_size
        named = {f"p{name}{'_c' if continuous else ''}": value for name, value in found.items()}
        tokens[str(cell.num_tokens)]["cells"].append(about | named)
    for entry in tokens.values():
        names = [name for name in entry["cells"][0] if name.startswith("p")]
        entry["mean"] = {name: float(np.mean([cell[name] for cell in entry["cells"]])) for name in names}
    features = {name: dataclasses.asdict(about) for name, about in sets.features.items()}
    return {"codebook_size": None if continuous else tokenizer.codebook_size, "tokens": tokens, "features": features}


class Cell(NamedTuple):
    """Decode the first `num_tokens` codes, each redrawn with probability `alpha` among its `delta` nearest."""

    num_tokens: int
    alpha: float
    delta: int


class NoisyCell(NamedTuple):
    """Decode the first `num_tokens` vectors with noise of `rho` times each channel's standard deviation."""

    num_tokens: int
    rho: float


def make_cells(config: PfidConfig, tokenizer: Tokenizer) -> list[Cell] | list[NoisyCell]:
    """All combinations of the options; the first of every length is the unperturbed one.

    Raises: UserError for an empty grid or values outside their range.
    """
    most = tokenizer.num_tokens
    lengths = sorted(set(config.num_tokens)) or [most]
    _check("num-tokens", lengths, 1, most)
    if tokenizer.quantizer.continuous:
        _check("rhos", config.rhos, 0, float("inf"))
        return [NoisyCell(k, rho) for k in lengths for rho in (0.0, *config.rhos)]
    size, quantizer = tokenizer.codebook_size, _groups(tokenizer)[0]
    if config.neighbours not in NEIGHBOURS:
        raise UserError(f"--neighbours got {config.neighbours!r}; expected {' or '.join(NEIGHBOURS)}")
    if config.neighbours == "latent" and (not hasattr(quantizer, "rows") or hasattr(quantizer, "scales")):
        name = tokenizer.config.quantizer["name"]
        raise UserError(f"a {name} quantizer has no latent per code; pass --neighbours code")
    deltas = [round(delta * size) if delta < 1 else int(delta) for delta in config.deltas]
    _check("alphas", config.alphas, 0, 1)
    _check("deltas", deltas, 1, size)
    asked = dict.fromkeys((alpha, delta) for alpha in config.alphas for delta in deltas)
    return [Cell(k, alpha, delta) for k in lengths for alpha, delta in ((0.0, 1), *asked)]


def _check(name: str, values: list[Any], low: float, high: float) -> None:
    wrong = [value for value in values if not low <= value <= high]
    if wrong or not values:
        raise UserError(f"--{name} got {wrong[:1] or 'nothing'}; expected numbers from {low} to {high}")


def _groups(tokenizer: Tokenizer) -> list[torch.nn.Module]:
    """All quantizers that have a codebook; a product quantizer has several."""
    return list(getattr(tokenizer.quantizer, "parts", [tokenizer.quantizer]))


def perturb_codes(codes: Tensor, near: Tensor, alpha: float, delta: int, draws: Tensor) -> Tensor:
    """Codes (B,L), each redrawn with probability alpha among the first `delta` of its near codes (B,L,D), D >= delta.

    draws: uniform numbers in [0,1), (2,B,L): the first choose which codes are redrawn, the second their new values.
    """
    ranks = (draws[1] * delta).long()
    drawn = near.gather(2, ranks.unsqueeze(2)).squeeze(2)
    return torch.where(draws[0] < alpha, drawn, codes)


class CodeSwaps:
    """Images (B,3,H,W) and their numbers in the folder -> the decoded images of every cell, in order."""

    def __init__(self, config: PfidConfig, tokenizer: Tokenizer, cells: list[Cell]) -> None:
        self.tokenizer, self.cells, self.seed = tokenizer, cells, config.seed
        self.groups, self.neighbours = _groups(tokenizer), config.neighbours
        self.widest, self.precision = max(cell.delta for cell in cells), config.precision

    def __call__(self, indices: np.ndarray, images: Tensor) -> Iterator[Tensor]:
        with autocast(self.precision, images.device):
            latents, _ = self.tokenizer.latents(images)
            codes = self.tokenizer.quantizer(latents).codes
        size = min(codes.shape[1], self.tokenizer.num_tokens)
        uniform = _drawn(self.seed, indices, lambda rng: rng.random((2, 1, size), np.float32), codes.device)
        # One image at a time: the near codes of a batch take gigabytes where the codebook is large.
        swapped: list[list[Tensor]] = []
        for at, own in enumerate(codes):
            near, kept = self._near(latents[at : at + 1], own)[None, :size], own[None, :size]
            swapped.append([perturb_codes(kept, near, cell.alpha, cell.delta, uniform[at]) for cell in self.cells])
        for number, cell in enumerate(self.cells):
            wrong = torch.cat([each[number] for each in swapped])
            with autocast(self.precision, images.device):
                decoded = self.tokenizer.decode(wrong[:, : cell.num_tokens])
            yield decoded

    def _near(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Latents of one image and its codes (L,) -> the codes near to each, (L,widest), within its codebook."""
        count = len(self.groups)
        if self.neighbours == "code":
            centres = [group.lookup(own) for group, own in zip(self.groups, codes.chunk(count), strict=True)]
        else:
            centres = [group.rows(own) for group, own in zip(self.groups, latents.chunk(count, dim=2), strict=True)]
        pairs = zip(self.groups, centres, strict=True)
        return torch.cat([nearest_codes(group, own, self.widest) for group, own in pairs])


class LatentNoise:
    """As `CodeSwaps`, for a continuous tokenizer.

    Args:
        batches: all images of this process, from which each channel's standard deviation over images and positions
            is computed, over all ranks.
    """

    def __init__(
        self, config: PfidConfig, tokenizer: Tokenizer, cells: list[NoisyCell], batches: Iterable[Tensor]
    ) -> None:
        self.tokenizer, self.cells, self.seed, self.precision = tokenizer, cells, config.seed, config.precision
        sums = torch.zeros(3, tokenizer.codebook_dim, dtype=torch.float64)
        for images in batches:
            vectors = self._vectors(images).double().transpose(0, 1).flatten(1).cpu()
            sums += torch.stack([torch.ones_like(vectors).sum(1), vectors.sum(1), vectors.square().sum(1)])
        count, first, second = sum(dist.gather_objects(sums))
        self.deviation = (second / count - (first / count) ** 2).clamp(min=0).sqrt().float()

    def __call__(self, indices: np.ndarray, images: Tensor) -> Iterator[Tensor]:
        vectors = self._vectors(images)
        shape = vectors.shape[1:]
        noise = _drawn(self.seed, indices, lambda rng: rng.standard_normal(shape, np.float32), vectors.device)
        spread = self.deviation.to(vectors.device)[:, None, None] * noise
        for cell in self.cells:
            kept = cell.num_tokens if self.tokenizer.is_1d else None
            with autocast(self.precision, images.device):
                decoded = self.tokenizer.decode_vectors(vectors + cell.rho * spread, kept).images
            yield decoded

    def _vectors(self, images: Tensor) -> Tensor:
        with autocast(self.precision, images.device):
            return self.tokenizer.encode_vectors(images).float()


def _drawn(
    seed: int, indices: np.ndarray, draw: Callable[[np.random.Generator], np.ndarray], device: torch.device
) -> Tensor:
    """One draw per image, which depends only on the seed and the image's number."""
    rngs = (numpy_generator(seed, "perturbation", int(index)) for index in indices)
    return torch.from_numpy(np.stack([draw(rng) for rng in rngs])).to(device)


def main() -> None:
    settings = config.parse(PfidConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
