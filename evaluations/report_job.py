"""What `evaluations.report` does: read the stages' results, judge them, write metrics.json and report.html."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from evaluations import npz, record, report_page
from evaluations.report import ReportConfig

__all__ = ["collect", "run", "targets"]


def run(config: ReportConfig) -> dict[str, Any]:
    """Write both files; returns what metrics.json says."""
    root = Path(config.results)
    stages = Stages(root)
    metrics = collect(stages)
    metrics["targets"] = targets(metrics)
    record.write_json(root / "metrics.json", metrics)
    page = report_page.render(config.title, metrics, stages, config.samples_per_class)
    partial = root / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(root / "report.html")
    missed = [target["name"] for target in metrics["targets"] if not target["met"]]
    print(f"{root / 'report.html'} and {root / 'metrics.json'}")
    print(f"targets missed: {', '.join(missed)}" if missed else "all targets met")
    return metrics


class Stages:
    """The result files of a run.

    Raises: UserError naming the file that is missing or unreadable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reconstruction = _json(root / "reconstruction" / "results.json")
        self.generation = _json(root / "generation" / "results.json")
        self.baselines = _json(root / "baselines.json")
        self.stages = _json(root / "stages.json")
        self.tokenizer_log = _lines(root / "tokenizer" / "metrics.jsonl")
        self.generator_log = _lines(root / "gpt" / "metrics.jsonl")
        self.decoder_log = _lines(root / "decoder" / "metrics.jsonl")

    @property
    def lengths(self) -> list[int]:
        return sorted(int(k) for k in self.reconstruction["tokens"])

    @property
    def classes(self) -> list[str]:
        """Class names of the training images, which are also those of the samples."""
        folder = Path(self.generation["question"]["reference_path"])
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())

    def previews(self) -> list[dict[str, Path]]:
        """For every previewed image: "gt" and each token count -> PNG."""
        folder = self.root / "reconstruction" / "previews"
        found = []
        for original in sorted(folder.glob("*_gt.png")):
            name = original.name.removesuffix("_gt.png")
            found.append({"gt": original, **{str(k): folder / f"{name}_tokens{k:04d}.png" for k in self.lengths}})
        return found

    def samples(self, per_class: int) -> dict[str, list[np.ndarray]]:
        """The first samples of each class, uint8 (H,W,3)."""
        packed = Path(self.generation["samples"])
        if not packed.is_file():
            raise UserError(f"the report shows the samples {str(packed)!r}, which are gone; leave --clear-cache out")
        labels = np.load(packed.with_suffix("") / "labels.npy", allow_pickle=False)
        shown: dict[str, list[np.ndarray]] = {name: [] for name in self.classes}
        index = 0
        for block in npz.stream(packed, 256):
            for pixels in block:
                row = shown[self.classes[labels[index]]]
                if len(row) < per_class:
                    row.append(pixels)
                index += 1
        return shown


def collect(stages: Stages) -> dict[str, Any]:
    """The figures of all stages under short names; `names` says which network each short name stands for."""
    asked, generated = stages.reconstruction["question"], stages.generation["metrics"]
    perceptual, frechet = (asked["perceptual"] or {}).get("name"), asked["frechet"]
    chosen = stages.generation["question"]["frechet"]
    short = {"psnr": "psnr", "ssim": "ssim", perceptual: "perceptual", frechet: "fd"}
    kept = {
        chosen: "fd", "fd_mean_colour": "fd_mean_colour", "class_accuracy": "class_accuracy",
        "probe_accuracy": "probe_accuracy",
    }
    suffix = f"_{chosen.removeprefix('fd_')}"
    kept |= {f"{name}{suffix}": name for name in ("inception_score", "precision", "recall")}
    codes = stages.reconstruction["codes"]
    return {
        "reconstruction": {
            str(k): {new: stages.reconstruction["tokens"][str(k)][old] for old, new in short.items() if old}
            for k in stages.lengths
        },
        "baselines": {key: stages.baselines[key] for key in ("bilinear_8x8_psnr", "kmeans_patch_vq_psnr")},
        "codebook_usage": codes["codebook_usage"],
        "codebook_perplexity": codes["codebook_perplexity"],
        "generation": {new: generated[old] for old, new in kept.items() if old in generated},
        "seconds": stages.stages["seconds"],
        "peak_rss_gb": stages.stages["peak_rss_gb"],
        "names": {"perceptual": perceptual, "fd": frechet, "generation.fd": chosen},
        "images": {
            "reconstruction": codes["images"], "generation": stages.generation["question"]["num_images"],
            "reference": stages.generation["question"]["num_reference_images"],
        },
        "record": {
            "tokenizer": asked["tokenizer"], "generator": stages.generation["question"]["generator"],
            "guidance": stages.generation["question"]["guidance"],
            "sampling": stages.generation["question"]["sampling"], **stages.reconstruction["environment"],
        },
    }


def targets(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """What the quickstart is expected to reach, and whether it did."""
    lengths = sorted(metrics["reconstruction"], key=int)
    psnr = [metrics["reconstruction"][k]["psnr"] for k in lengths]
    kmeans, made = metrics["baselines"]["kmeans_patch_vq_psnr"], metrics["generation"]
    rising = all(low < high for low, high in pairwise(psnr))
    gain, minutes = psnr[-1] - psnr[0], sum(metrics["seconds"].values()) / 60
    ratio = made["fd"] / made["fd_mean_colour"]
    most, fewest = lengths[-1], lengths[0]
    used, right, probe = metrics["codebook_usage"], made["class_accuracy"], made["probe_accuracy"]
    judged = [
        ("PSNR rises with every step of tokens", " < ".join(f"{x:.2f}" for x in psnr) + " dB", "strictly", rising),
        (f"PSNR gained from {fewest} to {most} tokens", f"{gain:.2f} dB", "≥ 1 dB", gain >= 1),
        (f"PSNR at {most} tokens", f"{psnr[-1]:.2f} dB", "≥ 19.5 dB", psnr[-1] >= 19.5),
        ("... against k-means on raw patches", f"{psnr[-1]:.2f} dB", f"≥ {kmeans:.2f} dB (goal)", psnr[-1] >= kmeans),
        ("Codebook entries in use", f"{used:.1%}", "≥ 50%", used >= 0.5),
        ("Samples of the class asked for", f"{right:.1%}", "≥ 70%", right >= 0.7),
        ("... by a classifier that is right on", f"{probe:.1%}", "≥ 95%", probe >= 0.95),
        ("Distance of samples, share of mean colours'", f"{ratio:.3f}", "< 1/3", ratio < 1 / 3),
        ("Time of all stages", f"{minutes:.1f} min", "≤ 15 min", minutes <= 15),
        ("Peak memory of any process", f"{metrics['peak_rss_gb']:.2f} GB", "≤ 6 GB", metrics["peak_rss_gb"] <= 6),
    ]
    return [{"name": name, "value": value, "target": target, "met": bool(met)} for name, value, target, met in judged]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"the report needs {str(path)!r}, which is not there; run that stage first") from error
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not valid JSON ({error}); remove it and run that stage again") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"the report needs {str(path)!r}, which is not there; run that training first")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
