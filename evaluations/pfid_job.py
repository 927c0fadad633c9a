"""What `evaluations.pfid` does: every cell of `perturbers.py` decoded for every image, and measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import tokenizer as tokenizers
from common import dist
from common.data import ImageFolder, batches, share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels, to_pixels
from evaluations import engine, record
from evaluations.metrics import FEATURES
from evaluations.metrics.frechet import Moments, frechet_distance
from evaluations.parts import PartWriter, join
from evaluations.perturbers import Cell, CodeSwaps, LatentNoise, NoisyCell, is_continuous, make_cells
from evaluations.pfid import PfidConfig
from tokenizer.model import Tokenizer

__all__ = ["run"]

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
    dataset = ImageFolder(config.data_path, tokenizer.image_size, crop="center")
    count = min(len(dataset), config.num_images or len(dataset))
    question = _question(config, dataset.paths[:count], cells)
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
        asked |= engine.question(
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
        config, scores, features = self.config, None, {}
        if self.writers:
            chosen = engine.choose(config.engine, config.eval_python_path)
            reference = (config.gt_npz_path, chosen, config.eval_python_path, config.inception_path)
            scores = engine.Scores(*reference, self.world.device)
        continuous = is_continuous(self.tokenizer)
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
