# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway refuses: oversized and ambiguous requests, and all paths that are not for clients."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, running, server

pytestmark = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
BODY = b'{"model":"m","prompt":"a"}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, FakeServer]]:
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path_factory.mktemp("closed"), [backend], max_body=100_000) as gateway:
            yield gateway, fake


def answer(gateway: Running, sent: bytes) -> bytes:
    """What the gateway answers to these bytes, with its body; nothing where it only hangs up."""
    port = int(gateway.url.rpartition(":")[2])
    found = b""
    with socket.create_connection(("127.0.0.1", port), 45) as connection:
        connection.sendall(sent)
        while data := connection.recv(65536):
            found += data
            head, end, body = found.partition(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", head, re.I)
            if end and size and len(body) >= int(size[1]):
                break
    return found


def post(*headers: bytes, body: bytes = BODY, path: bytes = b"/v1/completions") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: a", b"Connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def length(body: bytes = BODY) -> bytes:
    return b"Content-Length: %d" % len(body)


def test_request_is_served(served: tuple[Running, FakeServer]) -> None:
    assert answer(served[0], post(length())).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (post(b"Content-Length: 100001", body=b""), b"413"),
        (post(length(), b"Content-Length: 5"), b"400"),
        (post(length(), b"Transfer-Encoding: chunked, identity"), b"4"),
        (post(b"Content-Length: -5"), b"400"),
        (post(length(), b" X: folded first"), b"4"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + length() + b"\r\n\r\n" + BODY, b"400"),
    ],
)
def test_ambiguous_or_oversized_request_is_refused(
    served: tuple[Running, FakeServer], request_bytes: bytes, code: bytes
) -> None:
    gateway, fake = served
    before = len(fake.seen)
    # HAProxy 3.2 only hangs up on some that are no HTTP.
    assert answer(gateway, request_bytes)[: 9 + len(code)] in (b"HTTP/1.1 " + code, b"")
    assert len(fake.seen) == before


@pytest.mark.parametrize(
    "path",
    [
        *("/slots", "/slots/0", "/slots?action=save", "/props", "/metrics", "/tools", "/models/load", "/models/unload"),
        *("/models/sse", "/cors-proxy", "/lora-adapters", "/v1/streams/lookup", "/v1/streams", "/", "/index.html"),
        *("/v1/completions/../slots", "//slots", "/%73lots", "/v1/completions/", "/v1/models/load", "/stats"),
    ],
)
def test_path_that_is_not_for_clients_never_reaches_a_server(served: tuple[Running, FakeServer], path: str) -> None:
    gateway, fake = served
    before = len(fake.seen)
    for method in (b"GET", b"POST", b"DELETE", b"PUT"):
        found = answer(gateway, post(length(), path=path.encode()).replace(b"POST", method, 1))
        assert found.startswith(b"HTTP/1.1 404 "), found
        assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"
    assert len(fake.seen) == before


def test_log_has_no_prompt_and_no_key(served: tuple[Running, FakeServer]) -> None:
    gateway, _fake = served
    body = b'{"model":"m","prompt":"a secret prompt"}'
    found = answer(
        gateway, post(length(body), b"Authorization: Bearer secret-key", body=body, path=b"/v1/completions?q=secret")
    )
    assert found.startswith(b"HTTP/1.1 200 ")
    time.sleep(0.2)
    log = gateway.log.read_text()
    assert "secret" not in log
    [*_others, line] = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert (line["model"], line["status"], line["client"]) == ("m", 200, "127.0.0.1")
    assert {"queue_ms", "first_byte_ms", "total_ms", "path", "server"} <= line.keys()
