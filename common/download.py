"""Download released checkpoints: `python -m common.download NAME... [--out checkpoints]`, `--list` shows them.

An interrupted download continues with the same command. Sizes and hashes are checked where configs/zoo.yaml or an
earlier download knows them; those of new files are recorded in <out>/checksums.json."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from itertools import takewhile
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from tqdm import tqdm

from common import config
from common.config import opt, read_yaml, resolve
from common.errors import UserError, nearest

__all__ = ["DownloadConfig", "Entry", "fetch", "fetch_file", "is_repo_id", "read_table", "run"]

ROOT = Path(__file__).parents[1]
TABLE = "configs/zoo.yaml"
RECORD = "checksums.json"
CHUNK = 1 << 20
TIMEOUT_S = 60.0


# ---------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True)
class Fetched:
    """Size and sha256 of a downloaded file, and whether it existed before."""

    bytes: int
    sha256: str
    existed: bool


def fetch_file(
    url: str, path: str | Path, sha256: str | None = None, size: int | None = None,
    attempts: int = 8, pause_s: float = 2.0,
) -> Fetched:
    """Download `url` to `path`, resuming after interruptions; an existing file is only checked.

    Bytes go to `<path>.partial`. The file gets its name when its length is the server's and its hash begins with
    `sha256`. `attempts`: consecutive requests without a new byte before giving up; the pause between them doubles.
    `torch.hub.download_url_to_file` cannot resume.

    Raises: UserError when the server has no such file, does not answer, or sends another file than `sha256` or `size`.
    """
    path = Path(path)
    if path.is_file():
        return _check(path, path, sha256, size)
    if not url.startswith(("https://", "http://")):
        raise UserError(f"cannot download {url!r}; expected an address that starts with https://")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    failures, before = 0, _length(partial)
    while problem := _request(url, partial):
        failures = 0 if _length(partial) > before else failures + 1
        before = _length(partial)
        if failures >= attempts:
            raise UserError(
                f"{url} cannot be downloaded ({problem}); {before:,} bytes are kept, the same command continues"
            )
        time.sleep(min(60.0, pause_s * 2**failures))
    fetched = _check(path, partial, sha256, size)
    os.replace(partial, path)
    _etag(partial).unlink(missing_ok=True)
    return fetched


def _check(path: Path, there: Path, sha256: str | None, size: int | None) -> Fetched:
    with there.open("rb") as file:
        found = Fetched(_length(there), hashlib.file_digest(file, "sha256").hexdigest(), there == path)
    wrong = None
    if size is not None and found.bytes != size:
        wrong = f"has {found.bytes:,} bytes, expected {size:,}"
    elif sha256 and not found.sha256.startswith(sha256.lower()):
        wrong = f"has the hash {found.sha256}, expected {sha256}"
    if wrong and found.existed:
        raise UserError(f"{str(path)!r} {wrong}; remove it and run the same command again")
    if wrong:
        there.unlink()
        raise UserError(f"the download of {str(path)!r} {wrong}, and was removed; check its source")
    return found


def _request(url: str, partial: Path) -> str | None:
    """One request for the bytes that `partial` lacks. Returns what went wrong; None when it is complete."""
    have = _length(partial)
    headers = {"User-Agent": "image-token-lab", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _etag(partial).is_file():  # the server sends the whole file if it has changed since
            headers["If-Range"] = _etag(partial).read_text()
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            start = have if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = None if length is None else start + int(length)
            if etag := response.headers.get("ETag"):
                _etag(partial).write_text(etag)
            name = partial.name.removesuffix(".partial")
            with partial.open("ab" if start else "wb") as file, tqdm(
                total=total, initial=start, desc=name, unit="B", unit_scale=True, dynamic_ncols=True
            ) as bar:
                while block := response.read(CHUNK):
                    file.write(block)
                    bar.update(len(block))
        return None if total in (None, _length(partial)) else "the connection was closed early"
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the server has no more bytes
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return None
            partial.unlink()
            return "the partial file was longer than the server's"
        if error.code < 500 and error.code not in (408, 429):
            raise UserError(f"{url} answers {error.code} {error.reason}; check its name and your access") from error
        return f"it answers {error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _etag(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


# ---------------------------------------------------------------------------------------------- the hub

HUB_FILES = ("config.json", "model.safetensors")
PLAIN_FILE = "pytorch_model.bin"


def is_repo_id(text: str) -> bool:
    """Whether `text` has the form `owner/name` and cannot be meant as a local path."""
    owner = text.partition("/")[0]
    looks = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not re.search(r"\.(pt|pth|bin|ckpt|safetensors)$", text)
    return bool(looks) and not Path(owner).exists()


def fetch(repo_id: str, **options: Any) -> Path:
    """The folder of a hub model in the local cache, downloaded if necessary; options as `hf_hub_download` takes them.
    Where there is only a `pytorch_model.bin` (One-D-Piece), that file.

    Raises: UserError when it is neither cached nor reachable.
    """
    try:
        if not _reachable():  # the hub's client would retry for half a minute, even with the files in the cache
            options["local_files_only"] = True
        try:
            paths = [hf_hub_download(repo_id, name, **options) for name in HUB_FILES]
        except EntryNotFoundError:
            return Path(hf_hub_download(repo_id, PLAIN_FILE, **options))
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise UserError(
            f"no file or folder {repo_id!r} here, and the hub does not give {' and '.join(HUB_FILES)} for it "
            f"({type(error).__name__}); expected a run, a checkpoint file, a folder or a reachable hub id"
        ) from error
    return Path(paths[0]).parent


def _reachable() -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5)  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------------------------- the table


@dataclass
class DownloadConfig:
    """Everything `python -m common.download` reads."""

    names: list[str] = opt([], "checkpoints by name (the first words)")
    out: str = opt("checkpoints", "folder for the files")
    show: bool = opt(False, "print the model zoo: parameters, configs and published numbers")
    source: str | None = opt(None, "address of the folder that holds the files, instead of the table's")
    table: str = opt(TABLE, "the table of checkpoints")


@dataclass
class Entry:
    """A row of the table.

    what: tokenizer, generator, codes or network (one that training or a metric needs).
    source: address of the folder of the file, ending in a slash; None if only the paper's README links to it.
    sha256: the hash, or its beginning. licence: of the weights, as far as known; shown before they are downloaded.
    """

    what: str = ""
    parameters: int = 0
    source: str | None = None
    file: str = ""
    config: str | None = None
    sha256: str | None = None
    size: int | None = None
    numbers: str = ""
    licence: str = ""


def read_table(path: str | Path) -> dict[str, Entry]:
    """Every checkpoint by name."""
    path = Path(path) if Path(path).is_file() else ROOT / path
    return {name: resolve(Entry, row, where=name) for name, row in read_yaml(path).items()}


def run(config: DownloadConfig) -> list[Path]:
    """The job behind `python -m common.download`: returns the files."""
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
    source = f"{config.source.rstrip('/')}/" if config.source else entry.source
    if source is None and not path.is_file():
        raise UserError(
            f"the address of {name!r} ({entry.file}) is not in the table: give the folder its README links to with "
            f"--source URL, or put the file at {str(path)!r}"
        )
    record = _read_record(folder)
    known = record.get(path.name, {})
    url = f"{source}{entry.file}" if source else known.get("url", "")
    if entry.licence:
        print(f"{name}: licence {entry.licence}")
    fetched = fetch_file(url, path, entry.sha256 or known.get("sha256"), entry.size or known.get("bytes"))
    record[path.name] = {"sha256": fetched.sha256, "bytes": fetched.bytes, "url": url or None}
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(record, indent=1, sort_keys=True))
    os.replace(partial, folder / RECORD)
    checked = "hash as published" if entry.sha256 else "hash as recorded before" if known else "hash recorded"
    told = f"{'already there' if fetched.existed else 'downloaded'}, {fetched.bytes:,} bytes, {checked}"
    print(f"{path}: {told}" + (f"; config {entry.config}" if entry.config else ""))
    return path


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder / RECORD)!r} cannot be read ({error}); remove it") from error


def listing(table: dict[str, Entry]) -> str:
    """The model zoo as text, one line per checkpoint."""
    rows = [("name", "what", "parameters", "config", "licence", "published")]
    for name, entry in table.items():
        config = (entry.config or "recognised").removeprefix("configs/")
        size = f"{entry.parameters / 1e6:,.0f}M"
        rows.append((name, entry.what, size, config, entry.licence.partition(" (")[0], entry.numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def with_names(words: list[str]) -> list[str]:
    """The bare words at the start of a command line as `names=[...]`; the rest unchanged."""
    bare = [*takewhile(lambda word: not word.startswith("-") and "=" not in word, words)]
    return ([f"names=[{','.join(bare)}]"] if bare else []) + words[len(bare) :]


def main() -> None:
    settings = config.parse(DownloadConfig, with_names(sys.argv[1:]), aliases={"list": "show"}, about=__doc__)
    run(settings)


if __name__ == "__main__":
    config.main(main)
