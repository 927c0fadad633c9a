"""How well a decoder bears wrong codes: the distance of reconstructions from perturbed codes to the originals (pFID).

    bash scripts/eval_pfid.sh --vq-ckpt RUN --data-path DIR --sample-dir OUT --gt-npz-path VAL.npz

With probability alpha each code of each image is redrawn among the delta codes nearest to it, its own included; FID is
measured for every (alpha, delta), and pFID is the mean. `--frechet fd_efficientnet_lite2` measures the same on embedded
features and calls it pfd_efficientnet_lite2. The settings behind published pFIDs are not known: the grid here is ours,
so compare only figures of one grid. A continuous tokenizer has no codes to redraw: its vectors get Gaussian noise, and
the figure is called pfid_c. Writes `<sample-dir>/results.json` with every cell, and the unperturbed rFID.
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
from tqdm import tqdm

import tokenizer as tokenizers
from autoregressive.paper_flags import COMMON_FLAGS
from common import config, dist
from common.config import opt
from common.containers import open_images
from common.data import batches, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels
from common.npz import PartWriter, join
from evaluations import record
from evaluations.c2i import scores
from evaluations.harness import DecodingConfig
from evaluations.metrics import FEATURES
from evaluations.metrics.frechet import Moments, frechet_distance
from tokenizer.model import Tokenizer
from tokenizer.quantizers.perturbation import NEIGHBOURS, nearest_codes


@dataclass
class PfidConfig(DecodingConfig):
    sample_dir: str = opt("results/pfid", "where results go")
    alphas: list[float] = opt([0.5, 0.7, 0.9], "probabilities that a code is redrawn")
    deltas: list[float] = opt([0.02, 0.05], "pools it is redrawn from: a number of codes, or below 1 a share of them")
    neighbours: str = opt("code", "nearest to the chosen code (the paper's text) | to the latent (RobusTok's training)")
    rhos: list[float] = opt(
        [0.1, 0.2, 0.4], "continuous tokenizers: noise instead, as a share of each channel's standard deviation"
    )
    seed: int = opt(0, "image i draws from the seed and i alone")


FLAGS: dict[str, config.Alias] = {"quant-way": COMMON_FLAGS["quant-way"], "global-seed": "seed"}


NOT_IN_QUESTION = ("sample_dir", "device", "per_proc_batch_size", "num_workers", "eval_python_path")
VERSION = 1


def run(config: PfidConfig) -> dict[str, Any]:
    """Measure, write `results.json` and return it; an earlier result is reused only for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: PfidConfig, world: World) -> dict[str, Any]:
    path = Path(config.sample_dir) / "results.json"
    tokenizer = tokenizers.load(config.vq_ckpt, config.weights, world.device, config.model_config, config.image_size)
    if not config.frechet and not config.gt_npz_path:
        raise UserError("there is nothing to measure; give --gt-npz-path FILE.npz or --frechet NAME")
    if config.frechet and config.frechet not in FEATURES:
        raise UserError(f"--frechet got {config.frechet!r}; known: {', '.join(FEATURES)}")
    cells = make_cells(config, tokenizer)
    dataset = open_images(config.data_path, tokenizer.image_size)
    count = min(len(dataset), config.num_images or len(dataset))
    question = _question(config, dataset.files(count), cells)
    earlier = dist.gather_objects(record.read_current(path, question))[0]
    if earlier is not None:
        if world.is_main:
            print(f"{path}: this was measured before; delete the file to measure again")
        return earlier
    mine = share(count, world.rank, world.size)
    if is_continuous(tokenizer):
        given = batches(dataset, mine, config.per_proc_batch_size, config.num_workers)
        views = LatentNoise(config, tokenizer, cells, (from_pixels(each["pixels"].to(world.device)) for each in given))
    else:
        views = CodeSwaps(config, tokenizer, cells)
    job = Measurement(config, world, tokenizer, cells, views)
    bar = tqdm(total=len(mine), desc="pfid", unit="image", disable=not world.is_main, dynamic_ncols=True)
    for batch in batches(dataset, mine, config.per_proc_batch_size, config.num_workers):
        job.add(batch["index"].numpy(), batch["pixels"])
        bar.update(len(batch["index"]))
    bar.close()
    results = job.finish(count)
    if world.is_main:
        results = record.write(path, question, results, record.few_images(count))
        for k, found in results["tokens"].items():
            print(f"{k:>4} tokens: " + "  ".join(f"{name} {value:.4f}" for name, value in found["mean"].items()))
        print(f"results: {path}")
    dist.barrier()
    return results


def _question(config: PfidConfig, paths: list[str], cells: list[Cell]) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_IN_QUESTION}
    asked |= {
        "job": "pfid", "version": VERSION, "images": len(paths), "files": record.files_key(paths),
        "cells": [cell._asdict() for cell in cells], "tokenizer": record.checkpoint(config.vq_ckpt),
    }
    if config.gt_npz_path:
        asked |= scores.question(
            config.gt_npz_path, config.sample_dir, "reconstruction", config.engine, config.eval_python_path,
            config.inception_path,
        )
    return asked


class Measurement:
    """Everything that is added up over the images of this process."""

    def __init__(
        self, config: PfidConfig, world: World, tokenizer: Tokenizer, cells: list[Cell] | list[NoisyCell],
        views: CodeSwaps | LatentNoise,
    ) -> None:
        self.config, self.world, self.tokenizer, self.cells, self.views = config, world, tokenizer, cells, views
        self.extractor = FEATURES[config.frechet](device=world.device) if config.frechet else None
        self.originals, self.moments = Moments(), [Moments() for _ in cells]
        self.writers = [PartWriter(self.npz(cell), world.rank) for cell in cells] if config.gt_npz_path else []

    def npz(self, cell: Cell | NoisyCell) -> Path:
        name = "_".join(f"{key}_{value:g}" for key, value in cell._asdict().items())
        return Path(self.config.sample_dir) / f"{name}.npz"

    @torch.inference_mode()
    def add(self, indices: np.ndarray, pixels: Tensor) -> None:
        """One batch of originals, uint8 (B,H,W,3), with their numbers in the folder."""
        images = from_pixels(pixels).to(self.world.device)
        if self.extractor:
            self.originals.update(self.extractor(images)[0].cpu().numpy())
        for number, view in enumerate(self.views(indices, images)):
            decoded = to_pixels(view)
            if self.extractor:
                rounded = from_pixels(torch.from_numpy(decoded)).to(images.device)
                self.moments[number].update(self.extractor(rounded)[0].cpu().numpy())
            if self.writers:
                self.writers[number].write(decoded)

    def finish(self, count: int) -> dict[str, Any]:
        """Gather from all processes; the main one measures and returns the results."""
        for writer in self.writers:
            writer.close()
        gathered = dist.gather_objects((self.originals, self.moments))
        dist.barrier()
        if not self.world.is_main:
            return {}
        for theirs_originals, moments in gathered[1:]:
            self.originals.merge(theirs_originals)
            for mine, theirs in zip(self.moments, moments, strict=True):
                mine.merge(theirs)
        config, evaluator, features = self.config, None, {}
        if self.writers:
            chosen = scores.choose(config.engine, config.eval_python_path)
            reference = (config.gt_npz_path, chosen, config.eval_python_path, config.inception_path)
            evaluator = scores.Scores(*reference, self.world.device)
        continuous = is_continuous(self.tokenizer)
        originals = self.originals.gaussian() if self.extractor else None
        tokens: dict[str, dict[str, Any]] = {}
        for cell, moments in zip(self.cells, self.moments, strict=True):
            found: dict[str, float] = {}
            if self.extractor:
                found[config.frechet] = frechet_distance(originals, moments.gaussian())
            if evaluator:
                size = self.tokenizer.image_size
                about = {"kind": "reconstruction", **cell._asdict()}
                join(self.npz(cell), count, (size, size), self.world.size, about)
                figures, features["inception"], _ = evaluator(self.npz(cell))
                found["fid"] = figures["fid"]
                self.npz(cell).unlink()
            if str(cell.num_tokens) not in tokens:  # the first cell of a length is the unperturbed one
                unperturbed = {"rfid" if name == "fid" else name: value for name, value in found.items()}
                tokens[str(cell.num_tokens)] = {"unperturbed": unperturbed, "cells": [], "mean": {}}
            else:
                about = {key: value for key, value in cell._asdict().items() if key != "num_tokens"}
                if not continuous:
                    about["delta_share"] = cell.delta / self.tokenizer.codebook_size
                named = {f"p{name}{'_c' if continuous else ''}": value for name, value in found.items()}
                tokens[str(cell.num_tokens)]["cells"].append(about | named)
        for entry in tokens.values():
            names = [name for name in entry["cells"][0] if name.startswith("p")]
            entry["mean"] = {name: float(np.mean([cell[name] for cell in entry["cells"]])) for name in names}
        made = {name: dataclasses.asdict(about) for name, about in features.items()}
        size = None if continuous else self.tokenizer.codebook_size
        return {"codebook_size": size, "tokens": tokens, "features": made}


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


def main() -> None:
    settings = config.parse(PfidConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
