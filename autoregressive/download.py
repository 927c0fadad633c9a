"""Download released checkpoints: `python -m autoregressive.download NAME... [--out checkpoints]`, `--list` shows them.

An interrupted download continues with the same command. Sizes and hashes are checked where configs/zoo.yaml or an
earlier download knows them; what arrives first is recorded in <out>/checksums.json."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from common import config
from common.config import opt, read_yaml, resolve
from common.download import Fetched, fetch_file
from common.errors import UserError, nearest

TABLE = "configs/zoo.yaml"


@dataclass
class DownloadConfig:
    """Everything `python -m autoregressive.download` reads."""

    names: list[str] = opt([], "checkpoints by name (the first words)")
    out: str = opt("checkpoints", "folder the files go to")
    show: bool = opt(False, "print the model zoo: parameters, configs and published numbers")
    source: str | None = opt(None, "address of the folder the files are in, instead of the table's")
    table: str = opt(TABLE, "the table of checkpoints")


def with_names(words: list[str]) -> list[str]:
    """The bare words that a command line starts with, as `names=[...]`; the rest as it is."""
    bare = [*takewhile(lambda word: not word.startswith("-") and "=" not in word, words)]
    return ([f"names=[{','.join(bare)}]"] if bare else []) + words[len(bare) :]


ROOT = Path(__file__).parents[1]
RECORD = "checksums.json"


@dataclass
class Entry:
    """A row of the table."""

    what: str = ""
    """tokenizer, generator or network (one that training or a metric needs)."""
    parameters: int = 0
    source: str | None = None
    """Address of the folder the file is in, ending in a slash; None where the README's link is needed."""
    file: str = ""
    config: str | None = None
    sha256: str | None = None
    """The hash, or its beginning."""
    size: int | None = None
    numbers: str = ""

    @property
    def url(self) -> str | None:
        return f"{self.source}{self.file}" if self.source else None


def read_table(path: str | Path) -> dict[str, Entry]:
    """Every checkpoint by name."""
    path = Path(path) if Path(path).is_file() else ROOT / path
    return {name: resolve(Entry, row, where=name) for name, row in read_yaml(path).items()}


def run(config: DownloadConfig) -> list[Path]:
    """The job behind `python -m autoregressive.download`: returns the files that are there now."""
    table = read_table(config.table)
    if config.show:
        print(listing(table))
        return []
    if not config.names:
        raise UserError("no checkpoint named; give NAME... (one of the names that --list prints)")
    for name in config.names:
        if name not in table:
            raise UserError(f"unknown checkpoint {name!r}{nearest(name, table)}; --list prints all {len(table)} names")
    return [_download(name, table[name], config) for name in config.names]


def _download(name: str, entry: Entry, config: DownloadConfig) -> Path:
    folder = Path(config.out)
    path = folder / f"{name}{Path(entry.file).suffix}"
    url = f"{config.source.rstrip('/')}/{entry.file}" if config.source else entry.url
    record = _read_record(folder)
    known = record.get(path.name, {})
    if url is None and not path.is_file():
        raise UserError(
            f"the address of {name!r} ({entry.file}) is not in the table: give the folder its README links to with "
            f"--source URL, or put the file at {str(path)!r}"
        )
    sha256, size = entry.sha256 or known.get("sha256"), entry.size or known.get("bytes")
    fetched = fetch_file(url or "https://", path, sha256, size)
    _write_record(folder, path.name, {"sha256": fetched.sha256, "bytes": fetched.bytes, "url": url or known.get("url")})
    print(f"{path}: {_told(fetched, entry, known)}" + (f"; config {entry.config}" if entry.config else ""))
    return path


def _told(fetched: Fetched, entry: Entry, known: dict[str, Any]) -> str:
    checked = "hash as published" if entry.sha256 else "hash as recorded before" if known else "hash recorded"
    return f"{'already there' if fetched.was_there else 'downloaded'}, {fetched.bytes:,} bytes, {checked}"


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder / RECORD)!r} cannot be read ({error}); remove it") from error


def _write_record(folder: Path, file: str, entry: dict[str, Any]) -> None:
    record = _read_record(folder) | {file: entry}
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1, sort_keys=True))
    os.replace(partial, folder / RECORD)


def listing(table: dict[str, Entry]) -> str:
    """The model zoo as text, a line for each checkpoint."""
    rows = [("name", "what", "parameters", "config", "published")]
    for name, entry in table.items():
        config = (entry.config or "recognised").removeprefix("configs/")
        rows.append((name, entry.what, f"{entry.parameters / 1e6:,.0f}M", config, entry.numbers))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    settings = config.parse(DownloadConfig, with_names(sys.argv[1:]), aliases={"list": "show"}, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
