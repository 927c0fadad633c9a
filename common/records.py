"""The result records that evaluation jobs write, found in folders and shown as tables."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

__all__ = ["find", "render"]

RECONSTRUCTION = {"rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "lpips_vgg": "LPIPS"}
GENERATION = {
    "fid": "gFID", "sfid": "sFID", "inception_score": "IS", "precision": "Prec.", "recall": "Rec.",
    "precision_float64": "Prec. (float64)", "recall_float64": "Rec. (float64)",
}
"""Metric -> heading; metrics that are not listed follow under their own names."""


def find(root: Path, weights: Container[str] | None = None) -> list[dict[str, Any]]:
    """The records below `root`; files that are not records, or of an older kind without a protocol, are left out.

    weights: hashes as `common.checkpoint.fingerprint` makes them; only records of such weights are returned.
    """
    found = []
    for path in sorted(root.rglob("results.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if not isinstance(record, dict) or "protocol" not in record:
            continue
        used = (about["weights_sha256"] for about in record["protocol"]["checkpoints"].values())
        if weights is None or any(each in weights for each in used):
            found.append(record)
    return found


def render(records: Iterable[dict[str, Any]]) -> str:
    """Markdown: tables of tokenizers and generators, and, numbered, each row's command and flags."""
    notes: list[str] = []
    sections = {"reconstruction": "Tokenizers", "generation": "Generators"}
    rows: dict[str, list[dict[str, str]]] = {job: [] for job in sections}
    for record in records:
        job = record["question"]["job"]
        notes.append(_note(len(notes) + 1, record))
        if job == "reconstruction":
            for tokens, figures in record["tokens"].items():
                rows[job].append(_row(record, len(notes), tokens, figures, RECONSTRUCTION))
        else:
            tokens = ", ".join(map(str, record["protocol"]["num_tokens"])) or "?"
            rows[job].append(_row(record, len(notes), tokens, record["metrics"], GENERATION))
    parts = []
    for job, title in sections.items():
        if rows[job]:
            parts.append(f"## {title}\n\n{_table(_sorted(rows[job]))}")
    return "\n\n".join([*parts, "## How each number was made", "\n".join(notes)]) + "\n"


def _row(
    record: dict[str, Any], note: int, tokens: str, figures: dict[str, float | None], headings: dict[str, str]
) -> dict[str, str]:
    told = record["protocol"]
    row = {}
    for name in ("tokenizer", "generator"):
        about = told["checkpoints"].get(name)
        if about:
            row[name] = f"`{about['weights_sha256'][:8]}` {_millions(about.get('parameters'))}".strip()
    row["tokens"] = tokens
    if told["guidance"]:
        row["guidance"] = f"{told['guidance']['schedule']} {told['guidance']['scale']:g}"
    for name in [*headings, *(name for name in figures if name not in headings)]:
        if name in figures:
            row[headings.get(name, name)] = "-" if figures[name] is None else f"{figures[name]:.4g}"
    row["images"] = f"{told['images']:,}"
    row["reference"] = ", ".join(_reference(features["reference"]) for features in told["features"].values()) or "-"
    row["engine"] = ", ".join(f"{name} ({about['engine']})" for name, about in told["features"].items()) or "-"
    row["made by"] = f"[{note}]" + (" (!)" if record["flags"] else "")
    return row


def _note(number: int, record: dict[str, Any]) -> str:
    environment, told = record["environment"], record["protocol"]
    lines = [f"{number}. commit `{environment['git_commit'] or 'unknown'}`, precision {told['precision']}"]
    if told["labels"]:
        lines[0] += f", labels {told['labels']}, seed {told['seed']}"
    lines += [f"{name} `{about['path']}`" for name, about in told["checkpoints"].items() if "path" in about]
    if "command" in environment:
        lines.append(f"`{environment['command']}`")
    return "\n   - ".join([*lines, *(f"(!) {flag}" for flag in record["flags"])])


def _reference(reference: dict[str, Any]) -> str:
    key = reference.get("sha256") or reference.get("files") or "unknown"
    return f"{Path(reference['path']).name} `{key[:8]}`"


def _millions(parameters: int | None) -> str:
    return f"{parameters / 1e6:.1f}M" if parameters else ""


def _sorted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Best FID first, rows without one behind."""

    def key(row: dict[str, str]) -> float:
        value = row.get("rFID", row.get("gFID", "-"))
        return float("inf") if value == "-" else float(value)

    return sorted(rows, key=key)


def _table(rows: list[dict[str, str]]) -> str:
    headings = list(dict.fromkeys(key for row in rows for key in row))
    # What was not measured for some rows keeps its place before the columns that every row ends in.
    last = [name for name in ("images", "reference", "engine", "made by") if name in headings]
    headings = [name for name in headings if name not in last] + last
    lines = [headings, ["-"] * len(headings), *([row.get(name, "-") for name in headings] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
