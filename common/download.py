"""Large files over HTTP: resumed after every break, checked, and never half there under their own name."""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tqdm import tqdm

from common.errors import UserError

__all__ = ["Fetched", "fetch", "fetch_file", "is_repo_id", "sha256_of"]

HUB_FILES = ("config.json", "model.safetensors")
CHUNK = 1 << 20
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Fetched:
    """What arrived: its size, the hash of its bytes, and whether it had been there already."""

    bytes: int
    sha256: str
    was_there: bool


def fetch_file(
    url: str, path: str | Path, sha256: str | None = None, size: int | None = None,
    attempts: int = 8, pause_s: float = 2.0,
) -> Fetched:
    """Make `path` the file at `url`.

    Bytes go to `<path>.partial`; the next attempt, or the next run, continues there. The file gets its name when it is
    as long as the server said, and hashes to `sha256` (which may be the beginning of the hash). `attempts` counts those
    in a row that brought nothing.

    Raises: UserError when the server has no such file, stays silent, or sends another file than `sha256` or `size` say.
    """
    path = Path(path)
    if not url.startswith(("https://", "http://")):
        raise UserError(f"cannot download {url!r}; expected an address that starts with https://")
    if path.is_file():
        return _check(path, path, sha256, size, was_there=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    failures = 0
    while True:
        before = _length(partial)
        try:
            if _continue(url, partial, path.name):
                break
            problem = "the connection was closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url} answers {error.code} {error.reason}; check its name and your access") from error
            problem = f"it answers {error.code} {error.reason}"
        except (OSError, HTTPException) as error:  # URLError is an OSError
            problem = f"{type(error).__name__}: {error}"
        failures = 0 if _length(partial) > before else failures + 1
        if failures >= attempts:
            there = f"{_length(partial):,} bytes are kept"
            raise UserError(f"{url} cannot be downloaded ({problem}); {there}, the same command continues")
        time.sleep(min(60.0, pause_s * 2**failures))
    found = _check(path, partial, sha256, size, was_there=False)
    os.replace(partial, path)
    _etag_file(partial).unlink(missing_ok=True)
    return found


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, there: Path, sha256: str | None, size: int | None, was_there: bool) -> Fetched:
    length = _length(there)
    digest = sha256_of(there)
    wrong = None
    if size is not None and length != size:
        wrong = f"has {length:,} bytes, expected {size:,}"
    elif sha256 and not digest.startswith(sha256.lower()):
        wrong = f"hashes to {digest}, expected {sha256}"
    if wrong and was_there:
        raise UserError(f"{str(path)!r} {wrong}; remove it and run the same command again")
    if wrong:
        there.unlink()
        raise UserError(f"what arrived for {str(path)!r} {wrong}, and was removed; check its source")
    return Fetched(length, digest, was_there)


def _continue(url: str, partial: Path, name: str) -> bool:
    """One request for what `partial` lacks; True when it is complete."""
    have = _length(partial)
    headers = {"User-Agent": "image-token-lab", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _etag_file(partial).is_file():  # The server sends all of it if the file has changed since.
            headers["If-Range"] = _etag_file(partial).read_text()
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing behind our bytes: complete, or not this file's
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return True
            partial.unlink()
            return False
        raise
    with response:
        return _receive(response, partial, have, name)


def _receive(response: HTTPResponse, partial: Path, have: int, name: str) -> bool:
    if response.status != 206:
        have = 0  # the server starts over
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    if etag := response.headers.get("ETag"):
        _etag_file(partial).write_text(etag)
    with (
        partial.open("ab" if have else "wb") as file,
        tqdm(total=total, initial=have, desc=name, unit="B", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        while block := response.read(CHUNK):
            file.write(block)
            bar.update(len(block))
    return total is None or _length(partial) == total


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _etag_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".etag")


def is_repo_id(text: str) -> bool:
    """Whether `text` looks like `owner/name` and is nothing on this disk."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text)) and not Path(text).exists()


def fetch(repo_id: str, **options: Any) -> Path:
    """A hub model's folder in the local cache, downloaded if need be; options as `hf_hub_download` takes them.

    Raises: UserError when it is neither cached nor reachable.
    """
    try:
        paths = [hf_hub_download(repo_id, name, **options) for name in HUB_FILES]
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise UserError(
            f"no file or folder {repo_id!r} here, and the hub does not give {' and '.join(HUB_FILES)} for it "
            f"({type(error).__name__}); expected a run, a checkpoint file, a folder or a reachable hub id"
        ) from error
    return Path(paths[0]).parent
