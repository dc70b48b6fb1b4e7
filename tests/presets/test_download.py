"""Fetching a data set's file: whole or not at all, and a fetch that was cut off goes on."""

from __future__ import annotations

import fcntl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import presets

sys.path.insert(0, str(Path(presets.__file__).parent))  # as when the scripts beside it run
from download import fetch  # type: ignore[import-not-found]

CONTENT = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `cut` bytes of the first answer only, and ranges where `ranges` says so."""

    cut = 0
    ranges = True
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cut = self.server.cut, 0
        self.wfile.write(body[:cut] if cut else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/f"


def test_a_file_comes_whole_and_one_that_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "f.jsonl"
    assert fetch(url(server), target, "x")
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"mine")
    assert fetch(url(server), target, "x")
    assert target.read_bytes() == b"mine"
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_fetch_that_was_cut_off_says_so_and_goes_on(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranges: bool
) -> None:
    target = tmp_path / "f.jsonl"
    server.cut, server.ranges = 1000, ranges
    assert not fetch(url(server), target, "name it with --set a.b=FILE")
    error = capsys.readouterr().err
    assert "after 1,000 of 102,400 bytes (1,000 bytes are kept" in error
    assert "name it with --set a.b=FILE" in error
    assert not target.exists()
    assert fetch(url(server), target, "x")
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["f.jsonl"]


def test_what_is_longer_than_the_file_is_not_its_beginning(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".f.jsonl.part").write_bytes(b"?" * (len(CONTENT) + 1))
    assert fetch(url(server), tmp_path / "f.jsonl", "x")
    assert (tmp_path / "f.jsonl").read_bytes() == CONTENT


def test_two_do_not_write_into_one_file(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / ".f.jsonl.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not fetch(url(server), tmp_path / "f.jsonl", "x")
    assert "another process is fetching" in capsys.readouterr().err
    assert server.asked == []


def test_without_a_network_the_error_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not fetch("http://127.0.0.1:9/f", tmp_path / "f.jsonl", "give it with --set corpus.files=FILE")
    error = capsys.readouterr().err
    assert "cannot be fetched" in error
    assert "give it with --set corpus.files=FILE" in error
    assert list(tmp_path.iterdir()) == []
