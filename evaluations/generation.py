"""Sample a generator and measure the samples; with --search, find the best guidance scale.

    bash scripts/sample_c2i_search_cfg.sh --gpt-ckpt RUN --vq-ckpt RUN --sample-dir OUT --cfg-scale 2.0 \\
        --reference-path data/photos/train --frechet fd_efficientnet_lite2

Each point (schedule, scale, window) is sampled into `<sample-dir>/<point>/` and `<point>.npz`, measured into
`<point>.results.json` and added to `<sample-dir>/search.csv` and the plot `search.png`; `<sample-dir>/results.json` is
the best point, or the only one. A point that was measured before is read, not repeated. --search climbs with fewer
images (--search-num-images) and measures only the winner with all. With --samples FILE.npz an existing file is
measured.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoregressive.config import SampleConfig, for_device
from autoregressive.guidance import Guidance
from autoregressive.paper_flags import SAMPLE_FLAGS
from autoregressive.sample import ImageSampler, remove, sample
from common import config, dist, npz
from common.config import opt
from common.containers import open_images
from common.dist import World
from common.errors import UserError
from evaluations import harness, record
from evaluations.c2i import scores
from evaluations.c2i.evaluator import read_about
from evaluations.sample_metrics import Reference
from evaluations.search import SEARCHABLE, climb, coarse_count, plot, start_scale, windows


@dataclass
class GenerationConfig(SampleConfig):
    """What to sample (the options of autoregressive.sample) and how to measure it."""

    sample_dir: str = opt("results/samples", "folder for all points")
    gpt_ckpt: str | None = opt(None, "generator checkpoint or run; not needed with samples")
    vq_ckpt: str | None = opt(None, "tokenizer checkpoint or run that decodes; not needed with samples")
    samples: str | None = opt(None, "measure this .npz instead of sampling")
    samples_labels: str | None = opt(None, "labels of the samples (.npy), for class accuracy; null = not measured")
    reference_path: str | None = opt(None, "image folder with the generator's training images; needs frechet")
    held_out_path: str | None = opt(None, "other images of the same classes, on which the class classifier is tested")
    num_reference_images: int | None = opt(None, "number of reference images, evenly spread; null = all")
    frechet: str | None = opt(None, "distance to the reference: a name in evaluations.metrics:FEATURES")
    gt_npz_path: str | None = opt(None, "reference .npz for FID and its companions; null = not measured")
    engine: str = opt("auto", "for gt_npz_path: tensorflow | torch | auto = TensorFlow where eval_python_path has it")
    eval_python_path: str = opt("python", "for gt_npz_path: the Python that has TensorFlow")
    inception_path: str | None = opt(None, "for gt_npz_path: the Inception graph; null = the cache folder")
    search: bool = opt(False, "hill climb to the best scale in steps of 0.25 (constant, step, rectangular schedules)")
    search_num_images: int | None = opt(None, "images per point of the search; null = a fifth, at least 1,000")
    clear_cache: bool = opt(False, "delete each point's images and .npz when they are no longer needed")


NOT_IN_QUESTION = {
    "sample_dir": "where results go", "clear_cache": "what is deleted afterwards", "png": "which files are kept",
    "device": "equal up to rounding", "batch_size": "speed", "search": "how points are chosen",
    "search_num_images": "a point's own number of images is in its question",
    "eval_python_path": "the engine that it selects is in the question", "gpt_model": "must agree with the checkpoint",
    "tok_config": "must agree with the checkpoint", "image_size": "must agree with the checkpoint",
}
"""Options that do not change a point's figures, with the reason."""

VERSION = 3


def run(config: GenerationConfig) -> dict[str, Any]:
    """Measure one point, or search; returns what `<sample_dir>/results.json` says."""
    with dist.joined(config.device) as world:
        _check(config)
        job = Evaluation(config, world)
        results = job.search() if config.search else job.single()
        if world.is_main:
            record.write_json(Path(config.sample_dir) / "results.json", results)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in results["metrics"].items() if value is not None)
            print(f"{shown}\nresults: {Path(config.sample_dir) / 'results.json'}")
        dist.barrier()
        return results


def _check(config: GenerationConfig) -> None:
    if bool(config.frechet) != bool(config.reference_path):
        raise UserError("--frechet and --reference-path belong together; pass both or neither")
    if not config.frechet and not config.gt_npz_path:
        raise UserError(
            "nothing to measure against: pass --gt-npz-path FILE.npz (FID, TensorFlow evaluator), or "
            "--reference-path DIR --frechet fd_efficientnet_lite2 (embedded)"
        )
    if config.held_out_path and not config.reference_path:
        raise UserError("--held-out-path tests the classifier of --reference-path; pass both")
    if config.samples and (config.search or config.gpt_ckpt):
        raise UserError("--samples measures an existing file; leave --search and --gpt-ckpt out")
    if not config.samples and not (config.gpt_ckpt and config.vq_ckpt):
        raise UserError("--gpt-ckpt and --vq-ckpt are needed to sample; or pass --samples FILE.npz")
    if config.samples_labels and not config.samples:
        raise UserError("--samples-labels needs --samples; images that this job samples have their labels")
    if config.search and config.guidance.schedule not in SEARCHABLE:
        raise UserError(f"--search got the schedule {config.guidance.schedule!r}; expected {', '.join(SEARCHABLE)}")
    if config.search and config.search_num_images and config.search_num_images > config.num_images:
        raise UserError(f"--search-num-images {config.search_num_images} exceeds --num-fid-samples {config.num_images}")


class Evaluation:
    """Measures any number of points with models and a reference that are loaded once."""

    def __init__(self, config: GenerationConfig, world: World) -> None:
        self.config, self.world, self.out = for_device(config, world.device), world, Path(config.sample_dir)
        self.objective = config.frechet or "fid"
        self._sampler: ImageSampler | None = None
        self._reference: Reference | None = None
        self._scores: scores.Scores | None = None
        self._sources = self._hashes()

    def _hashes(self) -> dict[str, Any]:
        """What the results depend on besides the options: checkpoints, files and networks."""
        c = self.config
        found: dict[str, Any] = {}
        if c.samples:
            npz.header(c.samples)  # raises for unusable files before any work
            found["samples"] = record.files_key([c.samples, *([c.samples_labels] if c.samples_labels else [])])
        else:
            found["generator"] = record.checkpoint(c.gpt_ckpt, c.gpt_weights)
            found["tokenizer"] = record.checkpoint(c.vq_ckpt, c.vq_weights)
        for folder in filter(None, (c.reference_path, c.held_out_path)):
            images = open_images(folder, 1)
            found[folder] = record.files_key(images.files(len(images)))
        extractor = harness.load_extractor(c.frechet, self.world.device)
        if extractor:
            found["networks"] = {extractor.name: record.weights_key(extractor.network)}
        if c.gt_npz_path:
            kind = read_about(c.samples).get("kind") if c.samples else "generation"
            found |= harness.reference_sources(c, c.samples or c.sample_dir, kind)
            self._scores = scores.Scores(
                c.gt_npz_path, found["engine"], c.eval_python_path, c.inception_path, self.world.device
            )
        return found

    def question(self, guidance: Guidance, count: int) -> dict[str, Any]:
        asked = dataclasses.replace(self.config, guidance=guidance, num_images=count)
        # The checkpoint stands under the name of the option `generator`, which is kept under another one.
        sources = {**self._sources, "generator_config": self.config.generator}
        return harness.question(asked, "generation", VERSION, NOT_IN_QUESTION, **sources)

    # ------------------------------------------------------------------------------------------ one point

    def point(self, guidance: Guidance, count: int) -> dict[str, Any]:
        """Figures of one guidance setting, measured or, for exactly the same question, read."""
        question, folder = self.question(guidance, count), self.folder(guidance)

        def measure() -> harness.Measured | None:
            samples, labels = self._samples(guidance, count, folder)
            return self._measure(question, samples, labels) if self.world.is_main else None

        path = folder.with_name(f"{folder.name}-{count}.results.json")
        found = harness.answer(path, question, self.world, measure)
        if self.world.is_main:
            self._log(guidance, count, found)
        return found

    def folder(self, guidance: Guidance) -> Path:
        """Folder of a point's images; its `.npz` and figures are beside it."""
        return self.out / self._name(guidance)

    def clear(self, guidance: Guidance) -> None:
        """With --clear-cache, delete a point's images."""
        if self.config.clear_cache and not self.config.samples and self.world.is_main:
            remove(self.folder(guidance))

    def _samples(self, guidance: Guidance, count: int, folder: Path) -> tuple[Path, np.ndarray | None]:
        if self.config.samples:
            labels = self.config.samples_labels
            return Path(self.config.samples), np.load(labels, allow_pickle=False) if labels else None
        if self._sampler is None:
            self._sampler = ImageSampler.load(self.config, self.world.device)
        asked = dataclasses.replace(self.config, guidance=guidance, num_images=count, sample_dir=str(folder))
        return sample(self._sampler, asked, self.world), np.load(folder / "labels.npy", allow_pickle=False)

    def _measure(self, question: dict[str, Any], samples: Path, labels: np.ndarray | None) -> harness.Measured:
        metrics: dict[str, float] = {}
        features: dict[str, record.Features] = {}
        found = npz.header(samples)
        flags = record.few_images(found.count)
        if self.config.frechet:
            if self._reference is None:
                self._reference = Reference(
                    self.config.reference_path, self.config.frechet, found.size[0], self.config.num_reference_images,
                    self.config.held_out_path, self.world.device, read_about(samples).get("class_names"),
                )
            metrics |= self._reference.score(samples, labels)
            folder = self.config.reference_path
            features |= {
                name: record.Features("torch", key, {"path": folder, "files": question[folder]})
                for name, key in question["networks"].items()
            }
        if self._scores is not None:
            figures, features["inception"], more = self._scores(samples)
            metrics |= figures
            flags += more
        if labels is None:
            flags.append("no labels were given: class accuracy is not measured")
        protocol = self._protocol(question, list(metrics), features, found.count)
        return {"samples": str(samples), "metrics": metrics}, flags, protocol

    def _protocol(
        self, question: dict[str, Any], metrics: list[str], features: dict[str, record.Features], count: int
    ) -> record.Protocol:
        """How the samples were made: by this job, or as their file describes it."""
        c = self.config
        if self._sampler is None:
            about = read_about(c.samples)
            known = [name for name in ("generator", "tokenizer") if name in about]
            checkpoints = {name: {"weights_sha256": about[name]} for name in known}
            tokens = [about["num_tokens"]] if about.get("num_tokens") else []
            return record.Protocol(
                metrics, features, count, about.get("labels"), about.get("guidance"), about.get("seed"),
                about.get("precision", "unknown"), tokens, checkpoints,
            )
        models = {"generator": self._sampler.generator, "tokenizer": self._sampler.tokenizer}
        checkpoints = {
            name: {**question[name], "parameters": sum(p.numel() for p in model.parameters())}
            for name, model in models.items()
        }
        labels = c.labels if c.classes is None else f"{c.labels} over classes {c.classes}"
        tokens = [c.num_tokens or self._sampler.generator.num_tokens]
        return record.Protocol(
            metrics, features, count, labels, question["guidance"], c.seed, c.precision, tokens, checkpoints
        )

    def _name(self, guidance: Guidance) -> str:
        """A folder name that depends on everything the images depend on, except their number."""
        if self.config.samples:
            return Path(self.config.samples).stem
        asked = json.dumps(self.question(guidance, 0), sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        note = f"-{annotation(guidance)}" if annotation(guidance) else ""
        return f"{guidance.schedule}-cfg-{guidance.scale:g}{note.replace(';', '-')}-seed-{self.config.seed}-{digest}"

    def _log(self, guidance: Guidance, count: int, found: dict[str, Any]) -> None:
        """Add the point to search.csv, once, and plot all points."""
        path = self.out / "search.csv"
        row = {
            "annotation": annotation(guidance), "cfg_scale": guidance.scale, "cfg_schedule": guidance.schedule,
            "num_images": count, "point": self._name(guidance), **found["metrics"],
        }
        rows = []
        if path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        if not any(old["point"] == row["point"] and int(old["num_images"]) == count for old in rows):
            rows.append(row)
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for r in rows for key in r)))
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
        plot(rows, self.objective, path.with_suffix(".png"))

    def single(self) -> dict[str, Any]:
        """Measure the configured point."""
        results = self.point(self.config.guidance, self.config.num_images)
        self.clear(self.config.guidance)
        return results

    # ------------------------------------------------------------------------------------------ search

    def search(self) -> dict[str, Any]:
        """Climb with the search's number of images, then measure the winner with all images.

        The winner's images are kept: they are the first ones of its final measurement.
        """
        base, count = self.config.guidance, self.config.search_num_images or coarse_count(self.config.num_images)
        start = base.scale if base.scale > 1 else start_scale(base.schedule, str(self.config.gpt_model))
        choices = [base]
        if base.schedule == "rectangular":
            choices = [dataclasses.replace(base, window_start=a, window_end=b) for a, b in windows()]
        best: tuple[float, Guidance] | None = None
        for choice in choices:

            def evaluate(scale: float, choice: Guidance = choice) -> float:
                nonlocal best
                guidance = dataclasses.replace(choice, scale=scale)
                value = self.point(guidance, count)["metrics"][self.objective]
                if value is None:
                    raise UserError(f"{self.objective} at scale {scale} is not finite; check the samples of that point")
                if self.world.is_main:
                    self._say("", choice, scale, value)
                if best is None or (value, scale) < (best[0], best[1].scale):
                    (loser, best) = (best and best[1]), (value, guidance)
                else:
                    loser = guidance
                if loser:
                    self.clear(loser)
                return value

            # The next window starts from the best scale of this one.
            start, _ = climb(evaluate, start, {}, up_first=choice.schedule != "rectangular")
        if self.world.is_main:
            self._say("best: ", best[1], best[1].scale, best[0])
        results = self.point(best[1], self.config.num_images)
        self.clear(best[1])
        return results

    def _say(self, prefix: str, choice: Guidance, scale: float, value: float) -> None:
        where = f"{choice.schedule} {annotation(choice)} scale {scale:g}"
        print(f"{prefix}{where}: {self.objective} {value:.4f}", flush=True)


def annotation(guidance: Guidance) -> str:
    """The window of schedules that have one, as the papers' CSV writes it."""
    if guidance.schedule == "step":
        return f"window_start={guidance.window_start:.2f}"
    if guidance.schedule == "rectangular":
        return f"window_start={guidance.window_start:.2f};window_end={guidance.window_end:.2f}"
    return ""


def main() -> None:
    settings = config.parse(GenerationConfig, aliases=SAMPLE_FLAGS, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
