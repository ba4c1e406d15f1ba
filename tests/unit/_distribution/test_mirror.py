# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror as the source: it has to know Range, and each host gets its share of the pieces from it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
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


def test_names_are_quoted() -> None:
    assert mirror_url("https://mirror/models/", "a model.gguf") == "https://mirror/models/a%20model.gguf"
