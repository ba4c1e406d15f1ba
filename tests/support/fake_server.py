# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fake of llama-server for what a real one cannot be made to do in a test: named answers, waits and hangs."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """Answers /health, /v1/models and /slots, and any POST with its own port after `seconds`.

    While `hangs`, as with a stuck main loop, POST, /slots and /metrics get no answer, and the others do. Without
    `has_slots` it refuses /slots at once, as with --no-slots.
    """

    daemon_threads = True

    def __init__(self, model: str = "m", seconds: float = 0.0, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model, self.seconds = model, seconds
        self.hangs = False
        self.has_slots = True
        self.released = threading.Event()
        self.seen: list[tuple[str, dict[str, str], str]] = []
        self.port = self.server_address[1]
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves counts as no error here."""

    def __exit__(self, *args: Any) -> None:
        self.released.set()
        self.shutdown()
        super().__exit__(*args)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/slots") and not self.server.has_slots:
            self._answer({"error": {"code": 501}}, 501)
            return
        if self.path.startswith(("/slots", "/metrics")) and self.server.hangs:
            self.server.released.wait(60)
        if self.path.startswith("/v1/stream"):
            self._note("")
        self._answer({"data": [{"id": self.server.model}], "status": "ok"})

    do_DELETE = do_GET

    def do_POST(self) -> None:
        body = self._body()
        self._note(body.decode("utf-8", "replace"))
        if self.server.hangs:
            self.server.released.wait(60)
        time.sleep(self.server.seconds)
        self._answer({"port": self.server.port, "content": "x", "usage": {"total_tokens": 10}})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _note(self, body: str) -> None:
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))

    def _answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
