"""Downloads from a server that breaks connections: resumed, checked, and never half there under their own name."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common import download
from common.download import fetch_file
from common.errors import UserError

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FAST = {"attempts": 3, "pause_s": 0.0}


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any name. `break_after`: bytes per connection; `fail`: status codes to answer first;
    `then_fail`: status codes to answer after a broken connection."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.ranges = CONTENT, '"one"', True
        self.break_after: int | None = None
        self.fail: list[int] = []
        self.then_fail: list[int] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if self.path.endswith("/missing.pt"):
            self.send_error(404)
            return
        if server.fail:
            self.send_error(server.fail.pop(0))
            return
        current = self.headers.get("If-Range") in (None, server.etag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges and current else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        server.fail = list(server.then_fail)
        part = server.content[start:]
        self.wfile.write(part if server.break_after is None else part[: server.break_after])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_file_arrives_whole(server, tmp_path):
    fetched = fetch_file(f"{server.url}/a.pt", tmp_path / "deep/a.pt", DIGEST, len(CONTENT), **FAST)
    assert (fetched.bytes, fetched.sha256, fetched.existed) == (len(CONTENT), DIGEST, False)
    assert (tmp_path / "deep/a.pt").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.pt"]


def test_dropped_connections_are_resumed_where_they_broke(server, tmp_path):
    server.break_after = 100_000
    fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST, **FAST)
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={n * 100_000}-" for n in range(1, 6))]


def test_the_next_run_continues_the_last_one(server, tmp_path):
    path = tmp_path / "a.pt"
    (tmp_path / "a.pt.partial").write_bytes(CONTENT[:300_000])
    fetch_file(f"{server.url}/a.pt", path, DIGEST, **FAST)
    assert server.asked == ["bytes=300000-"] and path.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path):
    server.break_after, server.then_fail = 100_000, [503] * 9
    with pytest.raises(UserError, match="100,000 bytes are kept"):
        fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", **FAST)
    assert not (tmp_path / "a.pt").exists()
    server.fail, server.then_fail, server.break_after = [], [], None
    server.content, server.etag = CONTENT[::-1], '"two"'
    fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", **FAST)
    assert (tmp_path / "a.pt").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.pt.partial").write_bytes(b"something else")
    fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST, **FAST)
    assert (tmp_path / "a.pt").read_bytes() == CONTENT


def test_a_partial_file_that_is_complete_is_taken(server, tmp_path):
    (tmp_path / "a.pt.partial").write_bytes(CONTENT)
    fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST, **FAST)
    (tmp_path / "b.pt.partial").write_bytes(CONTENT + b"more")
    fetch_file(f"{server.url}/b.pt", tmp_path / "b.pt", DIGEST, **FAST)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.fail = [503, 429]
    fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST, **FAST)
    assert len(server.asked) == 3


@pytest.mark.parametrize(("sha256", "size"), [("0" * 64, None), (None, 5)])
def test_a_wrong_file_never_gets_the_name(server, tmp_path, sha256, size):
    with pytest.raises(UserError, match=r"expected .*was removed"):
        fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", sha256, size, **FAST)
    assert not (tmp_path / "a.pt").exists() and not (tmp_path / "a.pt.partial").exists()


def test_what_is_there_is_checked_not_fetched(server, tmp_path):
    (tmp_path / "a.pt").write_bytes(CONTENT)
    assert fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST[:8], **FAST).existed
    (tmp_path / "a.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="remove it and run"):
        fetch_file(f"{server.url}/a.pt", tmp_path / "a.pt", DIGEST, **FAST)
    assert server.asked == []


def test_what_cannot_be_had_is_one_sentence(server, tmp_path):
    server.fail = [500] * 9
    for url, message in (
        (f"{server.url}/missing.pt", "answers 404"), (f"{server.url}/a.pt", "answers 500"),
        ("http://127.0.0.1:9/a.pt", "cannot be downloaded"), ("file:///etc/passwd", "starts with https"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            fetch_file(url, tmp_path / "a.pt", **FAST)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.pt").exists()


# ------------------------------------------------------------------------------------------------------ the table


@pytest.fixture
def table(server, tmp_path) -> Path:
    rows = f"one: {{what: tokenizer, file: one.pt, source: '{server.url}/', config: configs/vq/VQ_SS256.yaml, "
    rows += "licence: MIT}\n"
    rows += "two: {what: generator, file: two.bin}\n"
    (tmp_path / "zoo.yaml").write_text(rows)
    return tmp_path / "zoo.yaml"


def settings(table: Path, *names: str, **options: object) -> download.DownloadConfig:
    return download.DownloadConfig(list(names), str(table.parent / "out"), table=str(table), **options)


def test_hashes_are_recorded_on_first_use_and_held_to_later(table, server, capsys):
    (path,) = download.run(settings(table, "one"))
    assert path.name == "one.pt" and path.read_bytes() == CONTENT
    record = json.loads((path.parent / "checksums.json").read_text())
    assert record == {"one.pt": {"sha256": DIGEST, "bytes": len(CONTENT), "url": f"{server.url}/one.pt"}}
    printed = capsys.readouterr().out
    assert "hash recorded; config configs/vq/VQ_SS256.yaml" in printed and printed.startswith("one: licence MIT\n")
    download.run(settings(table, "one"))
    assert "already there" in capsys.readouterr().out
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(UserError, match="has the hash"):
        download.run(settings(table, "one"))


def test_a_source_can_be_given(table, server):
    with pytest.raises(UserError, match="--source URL"):
        download.run(settings(table, "two"))
    (path,) = download.run(settings(table, "two", source=f"{server.url}/mirror/"))
    assert path.name == "two.bin"
    assert download.run(settings(table, "two")) == [path]  # it is there now


def test_unknown_names_are_refused_before_anything_is_fetched(table, server):
    with pytest.raises(UserError, match=r"unknown checkpoint 'tow' \(did you mean 'two'"):
        download.run(settings(table, "one", "tow"))
    with pytest.raises(UserError, match="no checkpoint named"):
        download.run(settings(table))
    assert server.asked == []


def test_the_command_takes_names_first():
    assert download.with_names(["a", "b", "--out", "c"]) == ["names=[a,b]", "--out", "c"]
    assert download.with_names(["--list"]) == ["--list"]


def test_the_shipped_table_is_complete(capsys):
    """Every released tokenizer and generator, configs that exist, and parameters as our models have them."""
    table = download.read_table(download.TABLE)
    download.run(download.DownloadConfig(show=True))
    printed = capsys.readouterr().out
    for name, entry in table.items():
        assert name in printed and entry.file and (entry.parameters > 1e7 or entry.what == "codes")
        assert entry.config is None or (download.ROOT / entry.config).is_file()
        assert entry.licence or entry.what == "network"
    words = [line.split() for line in printed.splitlines()]
    assert ["gigatok_S-S", "tokenizer", "136M", "vq/VQ_SS256.yaml", "MIT", "rFID", "1.01,", "LPIPS", "0.2226"] in words
    assert "3.91" in table["titok_S-128"].numbers and table["titok_S-128"].licence.startswith("Apache-2.0")
    families = {name.partition("_")[0] for name, entry in table.items() if entry.what in ("tokenizer", "generator")}
    assert families >= {"gigatok", "retok", "llamagen", "robustok", "titok", "onedpiece", "maskgit"}
