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
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
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


def log_lines(gateway: Running) -> list[dict[str, Any]]:
    time.sleep(0.2)
    return [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post(length(), *(b"X-%d: " % number + b"a" * 8000 for number in range(9))), 431, "headers_too_large"),
        (post(length(), b"X-Api-Key: " + b"a" * 900_000), 431, "headers_too_large"),
        (post(length(), path=b"/" + b"a" * 70_000), 414, "uri_too_long"),
    ],
)
def test_large_headers_are_refused_before_keys(tmp_path: Path, request_bytes: bytes, status: int, code: str) -> None:
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path, [backend], [Client("alice", "0" * 64)]) as gateway:
            found = answer(gateway, request_bytes)
            assert found.startswith(b"HTTP/1.1 %d " % status), found[:200]
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == code
            assert fake.seen == []


def test_headers_of_a_usual_size_are_served(served: tuple[Running, FakeServer]) -> None:
    headers = [b"X-%d: " % number + b"a" * 8000 for number in range(7)]
    assert answer(served[0], post(length(), *headers)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("character", ["a", "\x01", "ö", "\U0001f999"])
def test_log_is_json_whatever_model_and_path_are(served: tuple[Running, FakeServer], character: str) -> None:
    """HAProxy cuts a line at the length of its log, and a model may be as long as a request."""
    gateway, _fake = served
    body = json.dumps({"model": "m" + character * 5000}, ensure_ascii=False).encode()
    found = answer(gateway, post(length(body), body=body))
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "model_not_found"
    assert len(found) < 4000
    [*_others, line] = log_lines(gateway)
    # HAProxy leaves out what has four bytes in UTF-8.
    assert line["status"] == 404
    known = "m" if character > "\uffff" else "m" + character * 199
    assert line["model"] == known.encode()[:200].decode("utf-8", "ignore")
    path = b"/v1/" + b'%22"\x5c' * 2000
    assert answer(gateway, post(length(), path=path)).startswith(b"HTTP/1.1 404 ")
    [*_others, line] = log_lines(gateway)
    assert (line["status"], line["path"]) == (404, path[:200].decode())


def test_log_has_no_prompt_and_no_key(served: tuple[Running, FakeServer]) -> None:
    gateway, _fake = served
    body = b'{"model":"m","prompt":"a secret prompt"}'
    found = answer(
        gateway, post(length(body), b"Authorization: Bearer secret-key", body=body, path=b"/v1/completions?q=secret")
    )
    assert found.startswith(b"HTTP/1.1 200 ")
    [*_others, line] = log_lines(gateway)
    assert "secret" not in gateway.log.read_text()
    assert (line["model"], line["status"], line["client"]) == ("m", 200, "127.0.0.1")
    assert {"queue_ms", "first_byte_ms", "total_ms", "path", "server"} <= line.keys()
