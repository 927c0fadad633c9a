"""Code use, entropy and marginal gain of every token position of a tokenizer.

    bash scripts/diagnose_tokenizer.sh --vq-ckpt RUN --data-path DIR --out OUT

writes `<out>/diagnosis.json`, `<out>/positions.md` (a table) and `<out>/positions.png`. Nested dropout alone tends to
leave a tail of positions with low entropy and no gain, which ReTok and NesTok address.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from common import config, dist
from common.config import MISSING, build, opt, part
from common.containers import open_images
from common.data import share
from common.dist import World
from common.errors import UserError
from common.images import from_pixels
from common.numerics import autocast
from common.options import IMAGE_SIZE, PRECISIONS, WEIGHTS
from evaluations import harness, record
from evaluations.figures import COLOURS, STYLE, markdown
from evaluations.metrics.codebook_usage import CodeUsage
from tokenizer.model import Tokenizer


@dataclass
class DiagnoseConfig:
    vq_ckpt: str = opt(MISSING, "tokenizer: a run, one of its checkpoints, or a released file")
    weights: str = opt("ema", "ema falls back to model where a run kept no average", WEIGHTS)
    data_path: str = opt(MISSING, "held-out image folder; centre crops are taken")
    image_size: int | None = opt(None, IMAGE_SIZE)
    num_images: int | None = opt(None, "number of images, evenly spread over the folder; null = all")
    out: str = opt(MISSING, "folder for the results")
    every: int | None = opt(None, "tokens between two measured prefixes; null = a 64th of all")
    perceptual: dict[str, Any] = part("evaluations.metrics:PERCEPTUAL", "perceptual distance; {} = none")
    frechet: str | None = opt(None, "distance to the originals: a name in evaluations.metrics:FEATURES; null = none")
    batch_size: int = opt(32, "images at a time, per process")
    precision: str = opt("none", "none = fp32, bf16 = autocast", PRECISIONS)
    device: str = opt("auto", "auto | cpu | cuda")


FLAGS: dict[str, config.Alias] = {"perceptual": "perceptual.name"}


NOT_IN_QUESTION = {"out": "where results go", "device": "equal up to rounding", "batch_size": "speed"}
"""Options that do not change the figures, with the reason."""

VERSION = 3


def run(config: DiagnoseConfig) -> dict[str, Any]:
    """Measure and write; returns the content of `diagnosis.json`, which is reused for exactly the same question."""
    with dist.joined(config.device) as world:
        return _run(config, world)


def _run(config: DiagnoseConfig, world: World) -> dict[str, Any]:
    out = Path(config.out)
    tokenizer = harness.load_tokenizer(config.vq_ckpt, config.weights, world, image_size=config.image_size)
    dataset = open_images(config.data_path, tokenizer.image_size)
    count = min(len(dataset), config.num_images or len(dataset))
    if count < 2:
        raise UserError(f"--num-images leaves {count} image; expected at least 2, entropy is over images")
    chosen = harness.spread(len(dataset), count)
    job = Diagnosis(config, world, tokenizer)
    question = harness.question(
        config, "diagnose", VERSION, NOT_IN_QUESTION, files=record.files_key(dataset.files(len(dataset))),
        tokenizer=record.checkpoint(config.vq_ckpt, config.weights),
        networks={name: record.weights_key(network) for name, network in job.networks().items()},
    )

    def measure() -> harness.Measured | None:
        mine = [chosen[at] for at in share(count, world.rank, world.size)]
        for batch in harness.visit(dataset, mine, "diagnosis", config.batch_size):
            job.add(from_pixels(batch["pixels"]).to(world.device))
        curves, usage = job.gather()
        return summarise(curves, job.prefixes, usage), record.few_images(count) if config.frechet else [], None

    results = harness.answer(out / "diagnosis.json", question, world, measure)
    if world.is_main:
        (out / "positions.md").write_text(table(results))
        plot(results, out / "positions.png")
        for name, value in results["summary"].items():
            print(f"{name}: {value:.4f}")
        print(f"results: {out / 'diagnosis.json'}, {out / 'positions.md'}, {out / 'positions.png'}")
    return results


class Diagnosis:
    """Sums over the images of this process: occurrences of each code per position, and the error of every prefix."""

    def __init__(self, config: DiagnoseConfig, world: World, tokenizer: Tokenizer) -> None:
        self.config, self.world, self.tokenizer = config, world, tokenizer
        every = config.every or max(1, tokenizer.num_tokens // 64)
        if not 1 <= every <= tokenizer.num_tokens:
            raise UserError(f"--every got {config.every}; expected 1 to {tokenizer.num_tokens}")
        # A 2D tokenizer decodes only the whole grid.
        inner = range(every, tokenizer.num_tokens, every) if tokenizer.is_1d else ()
        self.prefixes = sorted({*inner, tokenizer.num_tokens, *({1, tokenizer.num_tokens // 2} if inner else ())})
        self.usage = CodeUsage(tokenizer.num_tokens, tokenizer.codebook_size)
        self.sums: dict[str, Tensor] = {}
        self.perceptual = None
        if config.perceptual:
            self.perceptual = build("evaluations.metrics:PERCEPTUAL", config.perceptual).to(world.device)
        extractor = harness.load_extractor(config.frechet, world.device)
        self.sets = harness.ImageSets(world, {k: Path() for k in self.prefixes}, extractor, packed=False)

    def networks(self) -> dict[str, nn.Module]:
        """The frozen networks behind the metrics, by name."""
        found = {} if self.perceptual is None else {self.perceptual.name: self.perceptual}
        extractor = self.sets.extractor
        return found if extractor is None else {**found, extractor.name: extractor.network}

    @torch.inference_mode()
    def add(self, images: Tensor) -> None:
        """images (B,3,H,W) in [-1,1]."""
        with autocast(self.config.precision, self.world.device):
            codes = self.tokenizer.encode(images)
        self.usage.update(codes)
        self.sets.add_originals(images)
        for place, k in enumerate(self.prefixes):
            with autocast(self.config.precision, self.world.device):
                decoded = self.tokenizer.decode(codes[:, :k]).float().clamp(-1, 1)
            self._sum("mse", place, (decoded - images).square().mean(dim=(1, 2, 3)))
            if self.perceptual is not None:
                self._sum(self.perceptual.name, place, self.perceptual(decoded, images))
            self.sets.add(k, decoded)

    def _sum(self, name: str, place: int, values: Tensor) -> None:
        sums = self.sums.setdefault(name, torch.zeros(len(self.prefixes), dtype=torch.float64))
        sums[place] += values.double().sum().cpu()

    def gather(self) -> tuple[dict[str, list[float]], CodeUsage]:
        """Error of every prefix by metric, and code counts, over all ranks."""
        self.sets.gather()
        gathered = dist.gather_objects((self.sums, self.usage.counts))
        for _, counts in gathered[1:]:
            self.usage.counts += counts
        images = int(self.usage.counts[0].sum())
        names = next(sums for sums, _ in gathered if sums)
        curves = {name: (sum(sums[name] for sums, _ in gathered if sums) / images).tolist() for name in names}
        if self.sets.extractor is not None:
            curves[self.config.frechet] = [self.sets.distance(k) for k in self.prefixes]
        return curves, self.usage


def summarise(curves: dict[str, list[float]], prefixes: list[int], usage: CodeUsage) -> dict[str, Any]:
    """Figures per position, and a summary with the means of all positions and of the tail (the second half).

    `entropy` of a position is that of its codes, divided by log(min(codebook, images)): 0 = always the same code.
    `gains` of a metric hold, for each interval between two prefixes, the drop of the error per added token.
    `tail_gain_*` is the fraction of the error at N/2 tokens that the second half removes.
    """
    seen = usage.summary()
    positions, codebook_size = usage.counts.shape
    most = math.log(min(codebook_size, seen["images"]))
    entropy = [math.log(value) / most for value in seen["perplexity_per_position"]]
    tail = slice(positions // 2, None)
    gains = {
        name: [(values[i] - values[i + 1]) / (prefixes[i + 1] - prefixes[i]) for i in range(len(values) - 1)]
        for name, values in curves.items()
    }
    summary = {
        "codebook_usage": seen["codebook_usage"], "codebook_perplexity": seen["codebook_perplexity"],
        "mean_usage": _mean(seen["usage_per_position"]), "tail_usage": _mean(seen["usage_per_position"][tail]),
        "mean_entropy": _mean(entropy), "tail_entropy": _mean(entropy[tail]),
    }
    if positions // 2 in prefixes:
        half = prefixes.index(positions // 2)
        summary |= {f"tail_gain_{name}": 1 - values[-1] / values[half] for name, values in curves.items()}
    return {
        "images": seen["images"], "summary": summary,
        "positions": {"usage": seen["usage_per_position"], "entropy": entropy},
        "prefixes": {"num_tokens": prefixes, **curves}, "gains": gains,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(results: dict[str, Any]) -> str:
    """A row for every position, with errors and gains where a prefix ends."""
    positions, prefixes = results["positions"], results["prefixes"]
    rows = [
        {"position": i + 1, "codebook use": f"{use:.3f}", "entropy": f"{entropy:.3f}"}
        for i, (use, entropy) in enumerate(zip(positions["usage"], positions["entropy"], strict=True))
    ]
    for name in results["gains"]:
        gains = [math.nan, *results["gains"][name]]
        for k, value, gain in zip(prefixes["num_tokens"], prefixes[name], gains, strict=True):
            rows[k - 1][name] = f"{value:.5f}"
            rows[k - 1][f"gain {name}"] = "" if math.isnan(gain) else f"{gain:.2e}"
    columns = ["position", "codebook use", "entropy"]
    columns += [column for name in results["gains"] for column in (name, f"gain {name}")]
    return markdown(columns, rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """Entropy and use per position, and the error of every prefix."""
    positions, prefixes = results["positions"], results["prefixes"]
    where = range(1, len(positions["usage"]) + 1)
    curves = [name for name in prefixes if name != "num_tokens"] if len(prefixes["num_tokens"]) > 1 else []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * (2 + len(curves)), 3.0), layout="constrained")
        left, right, *others = figure.subplots(1, 2 + len(curves))
        left.bar(where, positions["entropy"], color=COLOURS[0], width=0.85)
        left.set(title=f"Normalised entropy, tail {results['summary']['tail_entropy']:.2f}", ylim=(0, 1))
        right.bar(where, positions["usage"], color=COLOURS[2], width=0.85)
        right.set(title=f"Fraction of the codebook, mean {results['summary']['mean_usage']:.2f}")
        for axes, name in zip(others, curves, strict=True):
            axes.plot(prefixes["num_tokens"], prefixes[name], color=COLOURS[1], marker="o", markersize=3)
            axes.set(title=name, xlabel="tokens decoded")
        for axes in (left, right):
            axes.set_xlabel("position in the sequence")
        figure.savefig(path, dpi=130, facecolor="white")


def main() -> None:
    settings = config.parse(DiagnoseConfig, aliases=FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
