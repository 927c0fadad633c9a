"""Gather the results of a quickstart into `metrics.json` and a self-contained `report.html`.

    python -m studies.report --results results/quickstart

Reads, below --results: tokenizer/metrics.jsonl, gpt/metrics.jsonl, reconstruction/results.json with its previews,
drawings/results.json with its pictures, baselines.json, and stages.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from common import config
from common.config import opt
from common.errors import UserError
from evaluations import record
from studies import report_figures as figures

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass
class ReportConfig:
    results: str = opt("results/quickstart", "folder with the results of all stages; the report is written there")
    title: str = opt("Images as short token sequences", "heading of the report")
    credit: str | None = opt(None, "credit for the images, shown at the end")


def run(options: ReportConfig) -> dict[str, Any]:
    """Write both files; returns the content of metrics.json."""
    root = Path(options.results)
    found = {
        name: read(root / file) for name, file in {
            "reconstruction": "reconstruction/results.json", "drawings": "drawings/results.json",
            "baselines": "baselines.json", "stages": "stages.json",
        }.items()
    }  # fmt: skip
    metrics = collect(found)
    record.write_json(root / "metrics.json", metrics)
    page = render(options, root, found, metrics)
    partial = root / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(root / "report.html")
    print(f"{root / 'report.html'} and {root / 'metrics.json'}")
    return metrics


def read(path: Path) -> dict[str, Any]:
    """Raises: UserError when a stage has not written its results."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}); run the quickstart's stages first") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def collect(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of metrics.json."""
    rebuilt, drawn, base = found["reconstruction"], found["drawings"], found["baselines"]
    fd = {name: values["samples"] for name, values in drawn["fd"].items()}
    return {
        "reconstruction": rebuilt["tokens"],
        "baselines": {key: base[key] for key in ("bilinear_8x8_psnr", "kmeans_patch_vq_psnr")},
        "codebook_usage": rebuilt["codes"]["codebook_usage"],
        "generation": {
            "class_accuracy": drawn["class_accuracy"], "probe_accuracy": drawn["probe_accuracy"],
            "fd": next(iter(fd.values())), "near_copies": drawn["near_copies"], "fd_by_network": drawn["fd"],
        },
        "images": {"reconstruction": rebuilt["codes"]["images"], **drawn["images"]},
        "seconds": found["stages"]["seconds"], "peak_rss_gb": found["stages"]["peak_rss_gb"],
        "environment": drawn["environment"],
    }  # fmt: skip


def render(options: ReportConfig, root: Path, found: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The page."""
    lengths = sorted(metrics["reconstruction"], key=int)
    asked, made = found["drawings"]["question"], metrics["generation"]
    with np.load(root / "drawings" / "pictures.npz") as file:
        pictures = dict(file)
    classes = found["drawings"]["classes"]
    logs = {name: read_log(root / name / "metrics.jsonl") for name in ("tokenizer", "gpt")}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        title=options.title, credit=options.credit, most=lengths[-1], lengths=lengths,
        minutes=sum(metrics["seconds"].values()) / 60, tiles=tiles(metrics, lengths[-1]),
        reconstructions=previews(root / "reconstruction" / "previews", lengths),
        strips=[figures.strip(prefixes) for prefixes in pictures["prefixes"]],
        quality=figures.quality(metrics), curves=figures.curves(logs["tokenizer"], logs["gpt"]),
        seconds=figures.seconds(metrics["seconds"]), samples=samples(pictures, classes), per_class=asked["per_class"],
        drawing=asked, made=made, classes=classes, explained=explained(made, asked["num_tokens"]),
        guided=[
            (f"{scale:g}", [figures.uri(image) for image in row])
            for scale, row in zip(pictures["scales"], pictures["guided"], strict=True)
        ],
        codebook_size=found["baselines"]["question"]["num_codes"],
        **{key: metrics[key] for key in ("images", "reconstruction", "baselines", "peak_rss_gb")},
    )  # fmt: skip


def tiles(metrics: dict[str, Any], most: str) -> list[tuple[str, str]]:
    best, made = metrics["reconstruction"][most], metrics["generation"]
    return [
        (f"{best['psnr']:.1f} dB", f"PSNR of held-out images at {most} tokens"),
        (f"{metrics['codebook_usage']:.0%}", "of the codebook is used by the held-out images"),
        (f"{made['class_accuracy']:.0%}", f"of samples recognised as their class ({made['probe_accuracy']:.0%} of "
         "held-out images are)"),
        (f"{made['near_copies']:.1%}", "of samples are near copies of training images"),
    ]  # fmt: skip


def previews(folder: Path, lengths: list[str]) -> list[list[str]]:
    """A row of image sources per previewed image: every length, then the original."""
    suffixes = [*(f"_tokens{int(k):04d}" for k in lengths), "_gt"]
    indices = sorted(path.name.removesuffix("_gt.png") for path in folder.glob("*_gt.png"))
    return [[figures.file_uri(folder / f"{index}{suffix}.png") for suffix in suffixes] for index in indices]


def samples(pictures: dict[str, np.ndarray], classes: list[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Class -> pairs of a sample and its nearest training image."""
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in classes}
    for sample, near, label in zip(pictures["samples"], pictures["nearest"], pictures["labels"], strict=True):
        rows[classes[label]].append((figures.uri(sample), figures.uri(near)))
    return list(rows.items())


def explained(made: dict[str, Any], num_tokens: int) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each figure of the samples."""
    rows = [
        ("class accuracy", f"{made['class_accuracy']:.1%}", "samples that a linear classifier assigns to their class"),
        ("probe accuracy", f"{made['probe_accuracy']:.1%}", "held-out images that this classifier assigns correctly"),
        ("near copies", f"{made['near_copies']:.1%}", "samples closer to a training image than 99% of held-out images"),
    ]
    kinds = {
        "samples": "samples", "reconstructions": f"training images decoded from {num_tokens} tokens",
        "train": "the training images themselves",
    }  # fmt: skip
    for network, distances in made["fd_by_network"].items():
        for kind, what in kinds.items():
            meaning = f"Frechet distance of {what} to the held-out images, features of {network}; lower is closer"
            rows.append((f"FD of {kind}", f"{distances[kind]:.0f}", meaning))
    return rows


def main() -> None:
    run(config.parse(ReportConfig, about=__doc__))


if __name__ == "__main__":
    config.main(main)
