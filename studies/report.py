"""Gather what the stages of a run measured into `metrics.json` and a self-contained `report.html`.

    python -m studies.report --results results/quickstart

reads, below --results: metrics.jsonl of tokenizer/ and gpt/, reconstruction/results.json with its previews,
generation/results.json with its samples, baselines.json, and stages.json: {"seconds": {stage: s}, "peak_rss_gb": x}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import config, npz
from common.config import opt
from common.errors import UserError
from evaluations import record
from studies import report_figures as figures


@dataclass
class ReportConfig:
    results: str = opt("results/quickstart", "folder with the results of all stages; the report is written there")
    title: str = opt("Image tokens, few to many", "heading of the report")
    samples_per_class: int = opt(8, "samples shown of each class: the first ones, not chosen ones")


if TYPE_CHECKING:
    from studies.report import Stages


CURVES = (
    "Left: the tokenizer's losses on a logarithmic scale (losses that become negative are left out). Right: the "
    "generator's loss on codes of training images; an untrained generator starts at the logarithm of the codebook size."
)

STYLE = """
:root { --ink: #1f2933; --muted: #616e7c; --line: #e4e7eb; --soft: #f7f8fa; --good: #2f7d4f; --bad: #b23b3b;
        --accent: #0b6e99; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.55;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 28px 80px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 10px; }
h2 { font-size: 21px; letter-spacing: -0.01em; margin: 64px 0 6px; }
p { max-width: 74ch; margin: 6px 0 16px; } .lead { font-size: 18px; color: var(--muted); }
.note { color: var(--muted); font-size: 14.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin: 30px 0 0; }
.tile { background: var(--soft); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.tile b { display: block; font-size: 27px; letter-spacing: -0.02em; font-weight: 600;
          font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13.5px; line-height: 1.35; display: block; }
figure { margin: 18px 0 0; } figure > img { width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 14.5px; max-width: 84ch; margin-top: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13.5px; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } .met { color: var(--good); } .missed { color: var(--bad); }
.met, .missed { font-weight: 600; white-space: nowrap; }
table.pictures { width: auto; }
table.pictures td, table.pictures th { border: 0; padding: 3px 4px; text-align: center; }
table.pictures th.name { text-align: right; padding-right: 12px; font-weight: 500; }
table.pictures img { width: 88px; height: 88px; display: block; border-radius: 4px; }
.pair { display: flex; flex-wrap: wrap; gap: 8px 26px; margin-top: 14px; } .pair .scroll { max-width: 100%; }
.pair + figcaption, .scroll + figcaption { margin-top: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 22px; font-size: 15px; max-width: 100ch; }
dt { font-weight: 600; } dd { margin: 0; color: var(--muted); }
code { font: 13px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--soft);
       padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 32px 16px; } dl { grid-template-columns: 1fr; } }
"""


def render(title: str, metrics: dict[str, Any], stages: Stages, samples_per_class: int) -> str:
    """The whole page."""
    sections = [
        _head(title, metrics),
        _reconstructions(metrics, stages),
        _section(
            "Quality against the number of tokens",
            "One tokenizer, one sequence per image: decoding a shorter prefix of it gives a coarser image.",
            _figure(figures.quality(metrics), _quality_caption(metrics)),
        ),
        _samples(metrics, stages, samples_per_class),
        _codes(metrics, stages),
        _section(
            "Training", "What was minimised, averaged between two logged lines.",
            _figure(figures.curves(stages.tokenizer_log, stages.generator_log), CURVES),
        ),
        _targets(metrics),
        _numbers(metrics),
        _section(
            "Time and memory", f"No process used more than {metrics['peak_rss_gb']:.2f} GB.",
            _figure(figures.seconds(metrics["seconds"]), "Wall-clock seconds of every stage, its start included."),
        ),
        _glossary(metrics, stages),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _head(title: str, metrics: dict[str, Any]) -> str:
    most = max(metrics["reconstruction"], key=int)
    made, minutes = metrics["generation"], sum(metrics["seconds"].values()) / 60
    tiles = [
        (f"{metrics['reconstruction'][most]['psnr']:.2f} dB", f"PSNR of held-out images at {most} tokens"),
        (f"{metrics['codebook_usage']:.1%}", "of the codebook in use"),
        (f"{made['class_accuracy']:.0%}", "of samples recognised as the class asked for"),
        (f"{made['fd']:.0f}", f"feature distance of the samples (mean colours: {made['fd_mean_colour']:.0f})"),
        (f"{minutes:.1f} min", "for all stages"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{escape(what)}</span></div>' for value, what in tiles)
    met = sum(target["met"] for target in metrics["targets"])
    return (
        f"<h1>{escape(title)}</h1>"
        '<p class="lead">A tokenizer turns each image into a sequence of codes that can be cut short, and a generator '
        "learns to write such sequences. Everything below was trained and measured on this machine, on crops of a few "
        f"photographs. {met} of {len(metrics['targets'])} targets were met.</p>"
        f'<div class="tiles">{cells}</div>'
    )


def _reconstructions(metrics: dict[str, Any], stages: Stages) -> str:
    lengths = [str(k) for k in stages.lengths]
    heading = "".join(f"<th>{k} tokens</th>" for k in lengths) + "<th>original</th>"
    rows = []
    for preview in stages.previews():
        cells = "".join(
            f'<td><img alt="{name}" src="{figures.file_uri(preview[key])}"></td>'
            for key, name in [*((k, f"from {k} tokens") for k in lengths), ("gt", "original")]
        )
        rows.append(f"<tr>{cells}</tr>")
    half = (len(rows) + 1) // 2
    tables = "".join(
        f'<div class="scroll"><table class="pictures"><tr>{heading}</tr>{"".join(part)}</table></div>'
        for part in (rows[:half], rows[half:]) if part
    )
    caption = (
        "Held-out crops, taken at even distances through the folder, not chosen: no pixel of them was seen in "
        "training. Each row decodes prefixes of one sequence, beside the original."
    )
    return _section("Reconstructions", "", f'<div class="pair">{tables}</div><figcaption>{caption}</figcaption>')


def _samples(metrics: dict[str, Any], stages: Stages, per_class: int) -> str:
    rows = []
    for name, images in stages.samples(per_class).items():
        alt = f"sample of {escape(name)}"
        cells = "".join(f'<td><img alt="{alt}" src="{figures.uri(image)}"></td>' for image in images)
        rows.append(f'<tr><th class="name">{escape(name)}</th>{cells}</tr>')
    guidance, sampling = metrics["record"]["guidance"], metrics["record"]["sampling"]
    caption = (
        f"The first {per_class} samples of every class (the class is the photograph), not chosen. Guidance scale "
        f"{guidance['scale']:g}, schedule {escape(guidance['schedule'])}, temperature {sampling['temperature']:g}. A "
        "linear classifier on features of a network that took no part in training names "
        f"{metrics['generation']['class_accuracy']:.1%} of all {metrics['images']['generation']} samples as the class "
        "they were asked for."
    )
    body = f'<div class="scroll"><table class="pictures samples">{"".join(rows)}</table></div>'
    return _section("Samples", "", f"{body}<figcaption>{caption}</figcaption>")


def _codes(metrics: dict[str, Any], stages: Stages) -> str:
    codes = stages.reconstruction["codes"]
    caption = (
        f"Counted over {codes['images']} held-out images, so at one position at most as many codes can be seen. "
        f"Overall {codes['codebook_usage']:.1%} of the entries occur, with a perplexity of "
        f"{codes['codebook_perplexity']:.0f}: so many equally frequent codes would carry as much information."
    )
    return _section("Use of the codes", "", _figure(figures.positions(codes), caption))


def _targets(metrics: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(t["name"])}</td><td class="n">{escape(t["value"])}</td>'
        + f'<td class="n">{escape(t["target"])}</td>'
        + ('<td class="met">✓ met</td>' if t["met"] else '<td class="missed">✗ missed</td>') + "</tr>"
        for t in metrics["targets"]
    )
    table = f'<table><tr><th></th><th class="n">reached</th><th class="n">target</th><th></th></tr>{rows}</table>'
    return _section("Targets", "", f'<div class="scroll">{table}</div>')


def _numbers(metrics: dict[str, Any]) -> str:
    lengths = sorted(metrics["reconstruction"], key=int)
    names = list(metrics["reconstruction"][lengths[0]])
    heading = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    rows = "".join(
        f"<tr><td>{k} tokens</td>"
        + "".join(f'<td class="n">{_number(metrics["reconstruction"][k][name])}</td>' for name in names) + "</tr>"
        for k in lengths
    )
    simple = "".join(
        f'<tr><td>{name}</td><td class="n">{_number(metrics["baselines"][key])}</td>'
        + "<td></td>" * (len(names) - 1) + "</tr>"
        for key, name in (
            ("bilinear_8x8_psnr", "8×8 thumbnail, scaled up"), ("kmeans_patch_vq_psnr", "k-means on 8×8 patches")
        )
    )
    made = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{_number(value)}</td></tr>'
        for name, value in metrics["generation"].items()
    )
    return _section(
        "All figures", "The same numbers are in metrics.json.",
        f'<div class="scroll"><table><tr><th>reconstruction</th>{heading}</tr>{rows}{simple}</table></div><br>'
        f'<table style="max-width: 480px"><tr><th>samples</th><th></th></tr>{made}</table>',
    )


def _quality_caption(metrics: dict[str, Any]) -> str:
    base = metrics["baselines"]
    return (
        f"Means over {metrics['images']['reconstruction']} held-out images. The dotted line is an 8×8 thumbnail scaled "
        f"up ({base['bilinear_8x8_psnr']:.2f} dB), the dashed one k-means on raw 8×8 patches "
        f"({base['kmeans_patch_vq_psnr']:.2f} dB), which spends as many bits as 64 tokens of 10 bits."
    )


def _glossary(metrics: dict[str, Any], stages: Stages) -> str:
    names, about = metrics["names"], metrics["record"]
    perceptual, distance = (f"<code>{escape(str(names[key]))}</code>" for key in ("perceptual", "fd"))
    entries = [
        ("psnr", "Peak signal-to-noise ratio in dB of the 8-bit images, the mean over images. Higher is better."),
        ("ssim", "Structural similarity, 7×7 windows, data range 1 for images in [0, 1]. At most 1, higher is better."),
        ("perceptual", f"{perceptual}: a distance between features of a network, lower is better. Only with the name "
         "lpips_vgg is it the published LPIPS. A tokenizer trained with this very network in its loss has an edge."),
        ("fd", f"{distance}: Fréchet distance between Gaussians fitted to the features of two sets of images, as FID, "
         "but with another network: <b>it is not FID and does not compare with published FIDs</b>. Reconstructions: "
         "against the originals; samples: against training images. It falls as the number of images grows. A "
         "tokenizer trained with such a distance in its loss, if on another network's features, has an edge."),
        ("fd_mean_colour", "The same distance if every sample were only the mean colour of its class: the scale to "
         "read fd by."),
        ("class_accuracy", "Share of samples that a linear classifier on the features puts into the class asked for."),
        ("probe_accuracy", "How often that classifier is right about held-out crops."),
        ("inception_score", "exp of the mean divergence between each image's ImageNet class probabilities and their "
         "mean, with the network named above: not the published score."),
        ("precision, recall", "Share of samples near a training image, and of training images near a sample: within "
         "the distance to the third neighbour, computed exactly."),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in entries)
    record = "".join(
        f"<dt>{name}</dt><dd><code>{escape(str(value))}</code></dd>"
        for name, value in (
            ("tokenizer", about["tokenizer"]["weights_sha256"]), ("generator", about["generator"]["weights_sha256"]),
            ("code", about["git_commit"]), ("torch", about["torch"]),
        )
    )
    flags = dict.fromkeys([*stages.reconstruction["flags"], *stages.generation["flags"]])
    noted = "".join(f"<p class='note'>Note: {escape(flag)}.</p>" for flag in flags)
    return _section("What the figures mean", "", f"<dl>{listed}</dl>{noted}<h2>Made with</h2><dl>{record}</dl>")


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{body}</section>"


def _figure(source: str, caption: str) -> str:
    return f'<figure><img alt="" src="{source}"><figcaption>{caption}</figcaption></figure>'


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def run(config: ReportConfig) -> dict[str, Any]:
    """Write both files; returns what metrics.json says."""
    root = Path(config.results)
    stages = Stages(root)
    metrics = collect(stages)
    metrics["targets"] = targets(metrics)
    record.write_json(root / "metrics.json", metrics)
    page = render(config.title, metrics, stages, config.samples_per_class)
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


def main() -> None:
    settings = config.parse(ReportConfig, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
