# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that send slowly hold a connection for a limited time only."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from support.fake_server import FakeServer
from support.running_gateway import running, server

HEADERS = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"


def drip(port: int, begin: bytes) -> tuple[bytes, float]:
    """Send this and then a byte each second; returns the answer and after how many seconds it came."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(begin)
        connection.settimeout(1)
        while time.monotonic() < started + 60:
            try:
                return connection.recv(65536), time.monotonic() - started
            except TimeoutError:
                connection.sendall(b"x")
    return b"", 60.0


def test_slow_headers_and_slow_body_are_ended(tmp_path: Path) -> None:
    with FakeServer() as fake, ThreadPoolExecutor(2) as pool:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path, [backend]) as gateway:
            port = int(gateway.url.rpartition(":")[2])
            headers = pool.submit(drip, port, HEADERS + b"X-Slow: ")
            body = pool.submit(drip, port, HEADERS + b'\r\n{"model": "m", "prompt": "')
            (early, early_seconds), (late, late_seconds) = headers.result(), body.result()
            assert (early[:12], early_seconds < 15) == (b"HTTP/1.1 408", True)
            assert (late[:12], late_seconds < 40) == (b"HTTP/1.1 408", True)
        assert fake.seen == []
