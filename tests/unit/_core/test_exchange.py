# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One request has one deadline and one size limit, also against hostile servers."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.exchange import TooLongError, request

Handler = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def listen() -> Iterator[Callable[[Handler], tuple[str, int]]]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def start(handler: Handler) -> tuple[str, int]:
            def serve() -> None:
                try:
                    connection, _address = server.accept()
                    with connection:
                        handler(connection)
                except OSError:
                    return

            threading.Thread(target=serve, daemon=True).start()
            return "127.0.0.1", int(server.getsockname()[1])

        yield start


def drip(head: bytes, drop: bytes) -> Handler:
    def handler(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        for _number in range(200):
            connection.sendall(drop)
            time.sleep(0.05)

    return handler


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (HEAD + b"\r\n", b"x"),
        (HEAD, b"X-A: b\r\n"),
        (b"", b"H"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
def test_answer_in_drops_ends_at_the_deadline(listen, head: bytes, drop: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(socket.timeout):
        request(listen(drip(head, drop)), "GET", "/health", seconds=0.4, limit=65536)
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("head", [HEAD + b"\r\n", HEAD, HEAD + b"Content-Length: 800000000\r\n\r\n"])
def test_answer_above_the_limit_is_not_read(listen, head: bytes) -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        for number in itertools.count():
            sent.append(connection.send(b"X-%d: y\r\n" % number * 4096))

    with pytest.raises((TooLongError, Exception), match=r"longer than 65536|more than 100 headers|header line"):
        request(listen(flood), "GET", "/health", seconds=5, limit=65536)
    assert sum(sent) < 20 * 2**20


def test_request_and_answer(listen) -> None:
    received = []

    def answer(connection: socket.socket) -> None:
        received.append(connection.recv(65536))
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}trailing")

    address = listen(answer)
    assert request(address, "POST", "/x", seconds=5, limit=1000, body={"a": 1}, key="k") == (200, b"{}")
    head, _empty, body = received[0].partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /x HTTP/1.1" and body == b'{"a": 1}'
    assert b"Authorization: Bearer k" in head.splitlines()
    assert f"Host: 127.0.0.1:{address[1]}".encode() in head


def test_key_that_is_no_header_is_not_sent(listen) -> None:
    with pytest.raises(ValueError, match="API key"):
        request(("127.0.0.1", 1), "GET", "/", seconds=1, limit=10, key="a\r\nX: y")
