# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror as the source: it has to know Range, and each host gets its share of the pieces from it."""

from __future__ import annotations

import contextlib
import http.server
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._distribution import client
from ansible_collections.magi.llama.plugins.module_utils._distribution.client import (
    MirrorError,
    fetch_range,
    fetch_small,
    mirror_url,
)


class Mirror:
    """A server with one file. knows_range and garbage say how it answers; sent_bytes is what it has sent."""

    def __init__(self, data: bytes) -> None:
        self.data, self.knows_range, self.garbage, self.sent_bytes, self.status = data, True, False, 0, 206
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/models/a%20model.gguf"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        content, status = self.data, 200
        if wanted and self.knows_range:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            content, status = self.data[first : last + 1], self.status
        if self.garbage:
            content = b"\0" * len(content)
        self.sent_bytes += len(content)
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


@pytest.fixture
def mirror(fleet: Any) -> Iterator[Mirror]:
    made = Mirror(fleet.data)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_hosts_share_what_the_mirror_sends(fleet: Any, mirror: Mirror) -> None:
    hosts = [fleet.start(fleet.job(name, ["a", "b"], mirror=mirror.url)) for name in ("a", "b")]
    assert [host.wait(30) for host in hosts] == [True, True]
    assert fleet.path("b").read_bytes() == fleet.data
    assert mirror.sent_bytes <= 1.3 * len(fleet.data)
    assert all(host.status()["hosts"] > 0 for host in hosts)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"knows_range": False}, "does not know Range"),
        ({"garbage": True}, "The mirror has another file"),
        ({"status": 404}, "answered with status 404"),
    ],
)
def test_mirror_of_no_use_ends_the_run_with_its_address(
    fleet: Any, mirror: Mirror, setting: dict[str, Any], error: str
) -> None:
    vars(mirror).update(setting)
    host = fleet.start(fleet.job("a", ["a"], mirror=mirror.url))
    assert not host.wait(30)
    assert error in host.status()["error"]
    assert mirror.url in host.status()["error"]


def test_mirror_that_is_overloaded_is_asked_again(mirror: Mirror) -> None:
    mirror.status = 503
    with pytest.raises(ValueError, match="status 503"):
        fetch_range(mirror.url, 0, 10)


def test_small_file_has_a_limit(mirror: Mirror) -> None:
    with pytest.raises(MirrorError, match="longer than 10 bytes"):
        fetch_small(mirror.url, 10)


class Drip(socketserver.BaseRequestHandler):
    """Never ends: it sends a byte well within the time that a single one may take, of the headers or of the content."""

    begin = b""
    sent = b"0"

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(4096)
            self.request.sendall(self.begin)
            for _count in range(100):
                self.request.sendall(self.sent)
                time.sleep(0.05)


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 ", b"HTTP/1.1 206 Partial Content\r\nX: ", b"HTTP/1.1 206 Partial Content\r\n\r\n"]
)
def test_mirror_that_drips_is_given_up(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PIECE_SECONDS", 0.3)
    monkeypatch.setattr(client, "SMALL_SECONDS", 0.3)
    handler = type("Handler", (Drip,), {"begin": begin})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.gguf"
        with pytest.raises(TimeoutError):
            fetch_range(url, 0, 1000)
        with pytest.raises(TimeoutError):
            fetch_small(url, 1000)
        server.shutdown()


def test_names_are_quoted() -> None:
    assert mirror_url("https://mirror/models/", "a model.gguf") == "https://mirror/models/a%20model.gguf"
