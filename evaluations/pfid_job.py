"""What `evaluations.pfid` does. Source: RobusTok (arXiv 2503.08354) as far as it says; spec robustok 6.3."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autoregressive.pairing import load_tokenizer
from common import dist
from common.data import ImageFolder, batches, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels
from evaluations import engine, record
from evaluations.metrics import FEATURES
from evaluations.metrics.frechet import Moments, frechet_distance
from evaluations.parts import PartWriter, join
from evaluations.pfid import PfidConfig
from tokenizer.model import Tokenizer
from tokenizer.quantizers.perturbation import NEIGHBOURS, nearest_codes

__all__ = ["Cell", "perturb_codes", "run"]

NOT_IN_QUESTION = ("sample_dir", "device", "per_proc_batch_size", "num_workers", "eval_python_path")
VERSION = 1
UNPERTURBED = (0.0, 1)


class Cell(NamedTuple):
    """One way to decode: the first `num_tokens` codes, redrawn with chance `alpha` among the `delta` nearest."""

    num_tokens: int
    alpha: float
    delta: int


def run(config: PfidConfig) -> dict[str, Any]:
    """Measure, write `results.json` and return it; an earlier result is reused only for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: PfidConfig, world: World) -> dict[str, Any]:
    path = Path(config.sample_dir) / "results.json"
    tokenizer = load_tokenizer(config.vq_ckpt, config.weights, world.device, config.image_size, config.model_config)
    cells = make_cells(config, tokenizer)
    dataset = ImageFolder(config.data_path, tokenizer.image_size, crop="center")
    count = min(len(dataset), config.num_images or len(dataset))
    question = _question(config, dataset.paths[:count], cells)
    earlier = dist.gather_objects(record.read_current(path, question))[0]
    if earlier is not None:
        if world.is_main:
            print(f"{path}: this was measured before; delete the file to measure again")
        return earlier
    job = Measurement(config, world, tokenizer, cells)
    mine = share(count, world.rank, world.size)
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


def make_cells(config: PfidConfig, tokenizer: Tokenizer) -> list[Cell]:
    """All combinations asked for, and at every length the unperturbed one.

    Raises: UserError for an empty grid or numbers outside their range.
    """
    size, most = tokenizer.codebook_size, tokenizer.num_tokens
    if not config.frechet and not config.gt_npz_path:
        raise UserError("there is nothing to measure; give --gt-npz-path FILE.npz or --frechet NAME")
    if config.frechet and config.frechet not in FEATURES:
        raise UserError(f"--frechet got {config.frechet!r}; known: {', '.join(FEATURES)}")
    if config.neighbours not in NEIGHBOURS:
        raise UserError(f"--neighbours got {config.neighbours!r}; expected {' or '.join(NEIGHBOURS)}")
    group = getattr(tokenizer.quantizer, "parts", [tokenizer.quantizer])[0]
    if config.neighbours == "latent" and (not hasattr(group, "rows") or hasattr(group, "scales")):
        name = tokenizer.config.quantizer["name"]
        raise UserError(f"a {name} quantizer has no latent per code to be near to; pass --neighbours code")
    lengths = sorted(set(config.num_tokens)) or [most]
    deltas = [round(delta * size) if delta < 1 else int(delta) for delta in config.deltas]
    for name, values, low, high in (
        ("num-tokens", lengths, 1, most), ("alphas", config.alphas, 0, 1), ("deltas", deltas, 1, size)
    ):
        wrong = [value for value in values if not low <= value <= high]
        if wrong or not values:
            raise UserError(f"--{name} holds {wrong[:1] or 'nothing'}; expected numbers from {low} to {high}")
    asked = dict.fromkeys((alpha, delta) for alpha in config.alphas for delta in deltas)
    grid = [UNPERTURBED, *asked]
    return [Cell(k, alpha, delta) for k in lengths for alpha, delta in grid]


def _question(config: PfidConfig, paths: list[str], cells: list[Cell]) -> dict[str, Any]:
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_IN_QUESTION}
    asked |= {
        "job": "pfid", "version": VERSION, "images": len(paths), "files": record.files_key(paths),
        "cells": [cell._asdict() for cell in cells], "tokenizer": record.checkpoint(config.vq_ckpt),
    }
    if config.gt_npz_path:
        asked |= engine.question(
            config.gt_npz_path, config.sample_dir, "reconstruction", config.engine, config.eval_python_path,
            config.inception_path,
        )
    return asked


def perturb_codes(codes: Tensor, near: Tensor, alpha: float, delta: int, draws: Tensor) -> Tensor:
    """codes (B,L), each with chance alpha redrawn among the first `delta` of its near codes (B,L,D), D >= delta.

    draws: uniform numbers in [0,1), (2,B,L): the first decide which codes, the second what they become.
    """
    ranks = (draws[1] * delta).long()
    drawn = near.gather(2, ranks.unsqueeze(2)).squeeze(2)
    return torch.where(draws[0] < alpha, drawn, codes)


class Measurement:
    """Everything that is added up over the images of this process."""

    def __init__(self, config: PfidConfig, world: World, tokenizer: Tokenizer, cells: list[Cell]) -> None:
        self.config, self.world, self.tokenizer, self.cells = config, world, tokenizer, cells
        self.extractor = FEATURES[config.frechet](device=world.device) if config.frechet else None
        self.originals, self.moments = Moments(), [Moments() for _ in cells]
        self.writers = [PartWriter(self.npz(cell), world.rank) for cell in cells] if config.gt_npz_path else []
        self.widest = max(cell.delta for cell in cells)
        self.groups = getattr(tokenizer.quantizer, "parts", [tokenizer.quantizer])
        self.tables = (
            [nearest_codes(group, group.codebook(), self.widest) for group in self.groups]
            if config.neighbours == "code" else []
        )

    def npz(self, cell: Cell) -> Path:
        name = f"tokens_{cell.num_tokens:04d}_alpha_{cell.alpha:g}_delta_{cell.delta}.npz"
        return Path(self.config.sample_dir) / name

    @torch.inference_mode()
    def add(self, indices: np.ndarray, pixels: Tensor) -> None:
        """One batch of originals, uint8 (B,H,W,3), with their numbers in the folder."""
        images = from_pixels(pixels).to(self.world.device)
        codes, near = self._near(images)
        draws = np.stack([
            np.random.Generator(np.random.Philox(key=[self.config.seed, index])).random((2, codes.shape[1]), np.float32)
            for index in indices
        ], axis=1)  # fmt: skip
        uniform = torch.from_numpy(draws).to(codes.device)
        if self.extractor:
            self.originals.update(self.extractor(images)[0].cpu().numpy())
        for number, cell in enumerate(self.cells):
            wrong = perturb_codes(codes, near, cell.alpha, cell.delta, uniform)
            decoded = to_pixels(self.tokenizer.decode(wrong[:, : cell.num_tokens]))
            if self.extractor:
                rounded = from_pixels(torch.from_numpy(decoded)).to(images.device)
                self.moments[number].update(self.extractor(rounded)[0].cpu().numpy())
            if self.writers:
                self.writers[number].write(decoded)

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
        config, scores, features = self.config, None, {}
        if self.writers:
            chosen = engine.choose(config.engine, config.eval_python_path)
            reference = (config.gt_npz_path, chosen, config.eval_python_path, config.inception_path)
            scores = engine.Scores(*reference, self.world.device)
        originals = self.originals.gaussian() if self.extractor else None
        tokens: dict[str, dict[str, Any]] = {}
        for cell, moments in zip(self.cells, self.moments, strict=True):
            found: dict[str, float] = {}
            if self.extractor:
                found[config.frechet] = frechet_distance(originals, moments.gaussian())
            if scores:
                size = self.tokenizer.image_size
                about = {"kind": "reconstruction", **cell._asdict()}
                join(self.npz(cell), count, (size, size), self.world.size, about)
                figures, features["inception"], _ = scores(self.npz(cell))
                found["fid"] = figures["fid"]
                self.npz(cell).unlink()
            if str(cell.num_tokens) not in tokens:  # the first cell of a length is the unperturbed one
                unperturbed = {"rfid" if name == "fid" else name: value for name, value in found.items()}
                tokens[str(cell.num_tokens)] = {"unperturbed": unperturbed, "cells": [], "mean": {}}
            else:
                entry = tokens[str(cell.num_tokens)]
                share_of = cell.delta / self.tokenizer.codebook_size
                named = {f"p{name}": value for name, value in found.items()}
                entry["cells"].append({"alpha": cell.alpha, "delta": cell.delta, "delta_share": share_of, **named})
        for entry in tokens.values():
            names = [name for name in entry["cells"][0] if name.startswith("p")]
            entry["mean"] = {name: float(np.mean([cell[name] for cell in entry["cells"]])) for name in names}
        made = {name: dataclasses.asdict(about) for name, about in features.items()}
        return {"codebook_size": self.tokenizer.codebook_size, "tokens": tokens, "features": made}
