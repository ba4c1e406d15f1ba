# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The exporter of a host: serves its metrics and those of its servers at one address. It only reads.

Servers stay on loopback, and their API keys on the host: the exporter asks each server itself.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .._core.commands import CommandTimeoutError, output_of
from .._core.errors import MagiError
from .._core.gpu_processes import TOOL_FOLDERS
from .._core.run_lock import holder
from .._core.text import clean_text
from .._deployment.host_status import HostStatus, host_status
from .._deployment.record import read_intended
from .._health.idle import sleeps_when_idle
from .._health.probe import ask_server
from .collect import SERVER, host_families, server_labels, status_families
from .exposition import Family, exposition, merge_metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Several readers, as two Prometheus, get one answer.
FRESH_SECONDS = 4.0
METRICS_SECONDS = 2.0
SERVERS_AT_ONCE = 8
# For a request and its answer, and how many there may be.
CONNECTION_SECONDS = 30
CONNECTIONS = 8
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", *TOOL_FOLDERS)
# Answers a request for a server's /metrics with (status, body). Raises OSError, HTTPException or ValueError.
Ask = Callable[[Mapping[str, Any]], "tuple[int, bytes]"]


class Exporter:
    """Collects a host's metrics, not more often than FRESH_SECONDS."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._lock = threading.Lock()
        self._text, self._until = "", 0.0
        self._collected: float | None = None
        self._error = ""

    def metrics(self) -> str:
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = self._collect()
                self._until = time.monotonic() + FRESH_SECONDS
            return self._text

    def _collect(self) -> str:
        ok = Family("magi_llama_collection_ok", "gauge", "Whether the servers could be looked at.")
        try:
            families = host_metrics(self._state_dir, time.time())
        except Exception as error:
            # One of the exporter itself as well must leave it answering: an alert reads that it cannot look.
            is_known = isinstance(error, (MagiError, OSError))
            self._report(clean_text(str(error) if is_known else f"{type(error).__name__}: {error}"))
            ok.add({}, 0)
            last = Family("magi_llama_collection_timestamp_seconds", "gauge", "When the servers were last looked at.")
            if self._collected is not None:
                last.add({}, self._collected)
            return exposition([ok, last])
        self._report("")
        self._collected = time.time()
        ok.add({}, 1)
        return exposition([ok, *families])

    def _report(self, error: str) -> None:
        """Print an error once, and not for each request."""
        if error and error != self._error:
            sys.stderr.write(f"The servers could not be looked at: {error}\n")
        self._error = error


def host_metrics(state_dir: str, now: float) -> list[Family]:
    """All metrics of the host at this time. Raises MagiError and OSError."""
    found = host_status(state_dir, tool_output)
    own = [*host_families(found, holder(state_dir), now), *status_families(found, read_intended(state_dir))]
    return [*own, *server_families(found, ask_metrics)]


def server_families(found: HostStatus, ask: Ask) -> list[Family]:
    """What ready servers answer at /metrics, each sample with its server's labels.

    A server that sleeps, or whose port another process has, is not asked; nor is one that sleeps when it is idle, which
    that would wake or keep awake.
    """
    states = {entry["name"]: entry["state"] for entry in found.status["servers"]}
    ready = [one for one in found.servers if states.get(one["name"]) == "ready"]
    asked = [one for one in ready if "--metrics" in one["argv"] and not sleeps_when_idle(one)]
    answered = Family(f"{SERVER}_metrics_up", "gauge", "Whether its own metrics could be read, of ready servers.")
    families: dict[str, Family] = {}
    with ThreadPoolExecutor(max_workers=SERVERS_AT_ONCE) as pool:
        answers = list(pool.map(lambda server: _answer(server, ask), asked))
    for server, text in zip(asked, answers):
        labels = server_labels(server, found.record["profile"])
        answered.add(labels, text is not None)
        merge_metrics(families, text or "", labels)
    return [answered, *families.values()]


def _answer(server: Mapping[str, Any], ask: Ask) -> str | None:
    try:
        code, body = ask(server)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return body.decode("utf-8", "replace") if code == 200 else None


def ask_metrics(server: Mapping[str, Any]) -> tuple[int, bytes]:
    """Ask a server for its metrics, with its API key."""
    return ask_server(server, "GET", "/metrics", METRICS_SECONDS)


def tool_output(command: list[str]) -> str | None:
    path = shutil.which(command[0], path=":".join(FOLDERS))
    try:
        return None if path is None else output_of(path, *command[1:], seconds=10.0)
    except CommandTimeoutError:
        return None


class _Server(ThreadingHTTPServer):
    """Takes a number of connections at a time; further ones are closed."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        self.free = threading.BoundedSemaphore(CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The time-out of a socket is for each of its operations: a client could send a byte a minute for ever.
        deadline = threading.Timer(CONNECTION_SECONDS, _end, [request])
        deadline.daemon = True
        try:
            deadline.start()
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not worth a traceback."""


def _end(connection: socket.socket) -> None:
    # It may have ended meanwhile.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CONNECTION_SECONDS
    server_version = "magi-llama-exporter"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._send(200, CONTENT_TYPE, self.server.exporter.metrics())
        elif self.path == "/health":
            self._send(200, "text/plain", "ok\n")
        else:
            self._send(404, "text/plain", "There are /metrics and /health.\n")

    def _send(self, code: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line in the journal for each request."""


def make_server(state_dir: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens at host and port, without a thread of its own yet. Raises OSError."""
    return _Server((host, port), Exporter(state_dir))


def main(arguments: Sequence[str]) -> int:
    """Serve the metrics of the servers of a state directory: STATE_DIR HOST PORT."""
    if len(arguments) != 3 or not arguments[2].isdecimal():
        sys.stderr.write("usage: STATE_DIR HOST PORT\n")
        return 2
    state_dir, host, port = arguments
    try:
        server = make_server(state_dir, host, int(port))
    except OSError as error:
        sys.stderr.write(f"{host}:{port} cannot be listened at: {error.strerror}\n")
        return 1
    with server:
        server.serve_forever()
    return 0
