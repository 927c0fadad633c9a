"""Compare tokenizers: what each costs, what it keeps, what its codes are like, and how well a small GPT learns them.

    bash scripts/bench_tokenizers.sh --tokenizers RUN RUN ... --data-path DIR --num-tokens [32,64,128,256]

writes `<out>/bench.json`, `bench.md` and `bench.html` (table, plots, example images), and a record of every
measurement below `<out>/records`. A measurement is one group of columns of one tokenizer at one token count. It is
made once for the same question: the same command continues after an interruption, and any number of processes, also on
machines that share the folder, take what nobody else is working on. Under torchrun and Slurm every process is such a
worker, with a GPU of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import config, dist
from common.claims import claim
from common.errors import UserError
from evaluations import bench_page, bench_table, record
from evaluations.bench_measures import GPT, GROUPS, BenchConfig, Images, Subject

POLL_SECONDS = 2.0
VERSION = 1
"""Increases when the same question would get another answer."""

DEPENDS: dict[str, tuple[str, ...]] = {
    "cost": ("batch_size",), "kept": ("frechet", "perceptual", "resamples", "examples", "seed"), "codes": (),
    "robust": ("frechet", "seed"), "learned": ("train_path", "frechet", "gpt_steps", "resamples", "seed"),
}  # fmt: skip
"""The options that each group's figures depend on, beside the tokenizer, the token count and the images."""


@dataclass
class Unit:
    """One measurement: its name in the progress, its record, and the function that makes it."""

    title: str
    path: Path
    question: dict[str, Any]
    measure: Callable[[], dict[str, Any]]

    def read(self) -> dict[str, Any] | None:
        return record.read_current(self.path, self.question)


def run(options: BenchConfig) -> dict[str, Any]:
    """Measure what is missing, wait for what others measure, write table and page; returns the content of bench.json.

    Raises: UserError for unknown groups or networks, or tokenizers that cannot be compared.
    """
    unknown = [group for group in options.groups if group not in GROUPS]
    if unknown or not options.groups:
        raise UserError(f"--groups got {unknown or options.groups}; expected some of {', '.join(GROUPS)}")
    rank = int(os.environ.pop("RANK", 0))
    os.environ.pop("WORLD_SIZE", None)  # a worker measures alone, on the GPU of its LOCAL_RANK
    with dist.joined(options.device) as world:
        images = Images(options, world.device)
        named = zip(options.tokenizers, names(options.tokenizers), strict=True)
        subjects = [Subject(path, name, options.weights) for path, name in named]
        units = {subject.name: list(plan(options, images, subject)) for subject in subjects}
        first = rank % len(subjects)  # workers start with different tokenizers
        work([unit for subject in subjects[first:] + subjects[:first] for unit in units[subject.name]])
    return finish(options, images, subjects, units)


def plan(options: BenchConfig, images: Images, subject: Subject) -> Iterator[Unit]:
    """All measurements of one tokenizer."""
    keys = {path: _images_key(images, path, subject) for path in (options.data_path, options.train_path) if path}
    for group in options.groups:
        for k in subject.lengths(options.num_tokens) if group != "codes" else [subject.num_tokens]:
            question = {
                "job": "bench", "group": group, "version": VERSION, "num_tokens": k,
                "tokenizer": {key: subject.checkpoint[key] for key in ("weights_sha256", "weights")},
                **{name: getattr(options, name) for name in DEPENDS[group]},
            }  # fmt: skip
            if options.precision != "none":  # records from before this option stay valid
                question["precision"] = options.precision
            if group == "cost":
                question["device"] = [_processor(images.device), torch.get_num_threads()]
            else:
                question |= {"images": keys[options.data_path], "networks": _networks(images, group)}
            if group == "learned":
                question |= {"gpt": GPT, "train_path": keys.get(options.train_path)}
            digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
            folder = subject.checkpoint["weights_sha256"][:12]  # names depend on the other tokenizers
            path = Path(options.out) / "records" / folder / f"{group}-{k}-{digest}.json"

            def measure(group: str = group, k: int = k, path: Path = path) -> dict[str, Any]:
                path.with_suffix("").mkdir(parents=True, exist_ok=True)
                return GROUPS[group](images, subject, k, path.with_suffix(""))

            yield Unit(f"{subject.name}: {group}, {k} tokens", path, question, measure)


def work(units: list[Unit]) -> None:
    """Return when all units are measured, by this process or by others."""
    left = units
    while left := [unit for unit in left if unit.read() is None]:
        progress = False
        for unit in left:
            with claim(unit.path.with_suffix(".lock")) as ours:
                if ours and unit.read() is None:
                    print(f"[{len(units)} measurements] {unit.title}", flush=True)
                    start = time.perf_counter()
                    figures = unit.measure()
                    seconds = round(time.perf_counter() - start, 2)
                    record.write(unit.path, unit.question, {"figures": figures, "seconds": seconds})
                progress |= ours
        if not progress:
            time.sleep(POLL_SECONDS)


def finish(
    options: BenchConfig, images: Images, subjects: list[Subject], units: dict[str, list[Unit]]
) -> dict[str, Any]:
    """Write `bench.json`, `bench.md` and `bench.html` from the records."""
    out = Path(options.out)
    told = {name: [(unit.question, unit.path, unit.read()) for unit in own] for name, own in units.items()}
    folder = images.folder(options.data_path, subjects[0].image_size)
    about = {
        "images": len(folder), "data_path": options.data_path, "resamples": options.resamples, "seed": options.seed,
        "gpt_steps": options.gpt_steps, "frechet": options.frechet, "left_out": images.left_out,
        "precision": options.precision.replace("none", "fp32"),
        "flags": record.few_images(len(folder)), "git_commit": record.git_commit(),
    }  # fmt: skip
    tokenizers = {
        subject.name: {"path": subject.checkpoint["path"], "bits_per_code": math.log2(subject.codebook_size)}
        for subject in subjects
    }  # fmt: skip
    table = bench_table.collect(told, tokenizers, out, about)
    record.write_json(out / "bench.json", table)
    text = bench_table.text(table)
    record.write_text(out / "bench.md", text)
    record.write_text(out / "bench.html", bench_page.render(table, out))
    print(text)
    print(f"results: {out / 'bench.json'}, {out / 'bench.md'}, {out / 'bench.html'}")
    return table


def names(paths: list[str]) -> list[str]:
    """Short names: paths without the folders that all of them share at the start or the end.

    Raises: UserError when a tokenizer is named twice.
    """
    parts = [Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("--tokenizers names one path twice; expected different ones")
    if len(parts) == 1:
        return [Path(paths[0]).name]
    while len({each[0] for each in parts}) == 1:
        parts = [each[1:] for each in parts]
    while len({each[-1] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[:-1] for each in parts]
    return ["-".join(each) for each in parts]


def _images_key(images: Images, path: str, subject: Subject) -> str:
    folder = images.folder(path, subject.image_size)
    return record.files_key(folder.files(len(folder)))


def _networks(images: Images, group: str) -> dict[str, str]:
    """The hashes of the networks that a group uses."""
    if group in ("codes", "cost"):
        return {}
    own = images.networks[images.options.frechet].name
    return {name: key for name, key in images.network_keys.items() if group == "kept" or name == own}


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def one_list(words: list[str]) -> list[str]:
    """`--tokenizers A B C` as one list, `--tokenizers [A,B,C]`."""
    if "--tokenizers" not in words:
        return words
    start = words.index("--tokenizers") + 1
    stop = next((at for at in range(start, len(words)) if words[at].startswith("--")), len(words))
    given = words[start:stop]
    return words if len(given) == 1 and given[0].startswith("[") else [*words[:start], json.dumps(given), *words[stop:]]


def main() -> None:
    flags = {"perceptual": "perceptual.name"}
    run(config.parse(BenchConfig, one_list(sys.argv[1:]), aliases=flags, about=__doc__))


if __name__ == "__main__":
    config.main(main)
