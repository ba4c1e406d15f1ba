# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The small HTTP server that hands the pieces of a run's files to the run's other hosts."""

from __future__ import annotations

import contextlib
import hmac
import http.server
import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .._core.errors import MagiError
from .limits import RateLimit
from .part_file import PartFile

# Pieces that are sent at the same time: with more, each would be slow, and none could be handed on for a while.
MAX_SENT_AT_ONCE = 4
MAX_CONNECTIONS = 128
# Of silence, in the middle of a request or of an answer.
SILENCE_SECONDS = 30.0
_PIECE = re.compile(r"/piece/([0-9]{1,6})/([0-9]{1,8})")
_BLOCK = 1 << 16


class PortsError(MagiError):
    """No port of the range is free."""


def bitmap_of(numbers: set[int], count: int) -> str:
    """The numbers of pieces as hexadecimal digits: piece 0 is the lowest bit."""
    value = sum(1 << number for number in numbers if number < count)
    return f"{value:x}"


def numbers_of(bitmap: Any, count: int) -> set[int]:
    """The numbers in a bitmap below count. Raises ValueError where it is not one."""
    if not isinstance(bitmap, str) or len(bitmap) > count // 4 + 1:
        raise ValueError("not a bitmap of these pieces")
    value = int(bitmap, 16)
    return {number for number in range(count) if value >> number & 1}


class PieceServer:
    """Serves GET /have and /piece/FILE/NUMBER to those who know the token. sent_bytes counts what was handed out.

    name is this host's in the run; files has None for one that this host neither has nor gets.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[PartFile | None],
        token: str,
        limit: RateLimit,
        addresses: Sequence[str],
        ports: range,
    ) -> None:
        self.files, self.sent_bytes, self._name = files, 0, name
        self._token, self._limit = token, limit
        self._slots = threading.BoundedSemaphore(MAX_SENT_AT_ONCE)
        self._lock = threading.Lock()
        self._server = _bind(addresses, ports, self._handler())
        self.address = str(self._server.server_address[0])
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def is_allowed(self, header: str | None) -> bool:
        """Whether a request has the token of this run."""
        expected = f"Bearer {self._token}".encode()
        return hmac.compare_digest((header or "").encode("utf-8", "replace"), expected)

    def have(self) -> dict[str, str]:
        """The bitmap of each file of which there is something here, by its number."""
        return {
            str(number): bitmap_of(file.have, len(file.pieces.digests))
            for number, file in enumerate(self.files)
            if file is not None and file.have
        }

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and content for a path; the content of 200 for a piece is checked by who asked for it."""
        if path == "/have":
            return 200, json.dumps({"name": self._name, "have": self.have()}).encode()
        match = _PIECE.fullmatch(path)
        number = int(match[1]) if match else -1
        file = self.files[number] if 0 <= number < len(self.files) else None
        data = file.read(int(match[2])) if file is not None and match else None
        return (404, b"") if data is None else (200, data)

    def send(self, path: str, write: Callable[[bytes], object], begin: Callable[[int, int], object]) -> None:
        """Answer a request with begin(status, length) and write(block), as fast as the limit allows."""
        is_piece = path.startswith("/piece/")
        if is_piece and not self._slots.acquire(blocking=False):
            begin(503, 0)
            return
        try:
            status, data = self.answer(path)
            begin(status, len(data))
            for at in range(0, len(data), _BLOCK):
                block = data[at : at + _BLOCK]
                if is_piece:
                    self._limit.take(len(block))
                write(block)
                with self._lock:
                    self.sent_bytes += len(block) if is_piece else 0
        finally:
            if is_piece:
                self._slots.release()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = SILENCE_SECONDS

            def do_GET(self) -> None:
                if not outer.is_allowed(self.headers.get("Authorization")):
                    self._begin(403, 0)
                    return
                with contextlib.suppress(OSError):
                    outer.send(self.path, self.wfile.write, self._begin)

            def _begin(self, status: int, length: int) -> None:
                self.send_response_only(status)
                self.send_header("Content-Length", str(length))
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True

            def log_message(self, *_arguments: Any) -> None:
                """Nothing reads a log."""

        return Handler


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: Any, handler: Any) -> None:
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not that of HTTPServer, which asks for a name of the address.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not an error of this host."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _bind(addresses: Sequence[str], ports: range, handler: type[http.server.BaseHTTPRequestHandler]) -> _Server:
    """A server at the first address that is this host's, and the first free port."""
    for address in addresses:
        for port in ports:
            try:
                return (_Server6 if ":" in address else _Server)((address, port), handler)
            except OSError:
                continue
    raise PortsError(
        f"No port from {ports.start} to {ports.stop - 1} is free at {' or '.join(addresses)}: set "
        "models_port_range_start and models_port_range_end to ports that nothing uses."
    )
