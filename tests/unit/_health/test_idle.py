# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting until servers have answered their requests: when one is idle, and what it is asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._health import idle
from ansible_collections.magi.llama.plugins.module_utils._health.idle import Idleness, Look

BUSY, FREE = {"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}
GAUGES = "# TYPE x gauge\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 3\nllamacpp:n_decode_total 9\n"
OFF = (501, '{"error": {"code": 501}}')


class FakeServers:
    """Servers whose numbers of requests follow each other, a look each; the last one lasts. None: it does not run."""

    def __init__(self, **looks: Sequence[int | None]) -> None:
        self.looks, self.now, self.rounds = looks, 0.0, 0

    def look(self, names: Sequence[str]) -> Mapping[str, Look]:
        def one(name: str) -> Look:
            numbers = self.looks[name]
            number = numbers[min(self.rounds, len(numbers) - 1)]
            return Look(0, "it is not running", False) if number is None else Look(number)

        found = {name: one(name) for name in names}
        self.rounds += 1
        return found

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, timeout: float = 60.0, **more: Any) -> list[Idleness]:
        names = list(self.looks)
        return idle.wait_until_idle(names, self.look, clock=lambda: self.now, sleep=self.sleep, timeout=timeout, **more)


def test_server_is_idle_when_two_looks_in_a_row_find_no_request() -> None:
    servers = FakeServers(a=[2, 0, 1, 0, 0], b=[0])
    found = servers.wait()
    assert [(one.idle, one.requests) for one in found] == [(True, 0), (True, 0)]
    assert [one.seconds for one in found] == [1.2, 0.3]


def test_server_that_does_not_run_is_idle_at_once() -> None:
    servers = FakeServers(a=[None])
    assert servers.wait() == [Idleness("a", True, True, 0.0, 0, "it is not running")]
    assert servers.rounds == 1


def test_requests_that_are_not_over_at_timeout_are_counted() -> None:
    servers = FakeServers(a=[3], b=[0])
    found = servers.wait(2.0)
    assert [(one.idle, one.is_settled, one.requests) for one in found] == [(False, True, 3), (True, True, 0)]
    assert 2.0 <= found[0].seconds < 2.5
    summary = idle.summary([one.as_dict() for one in found])
    assert summary == {
        "complete": True,
        "msg": f"1 of 2 servers are idle\na: 3 requests are not over after {found[0].seconds:g} s",
    }


def test_server_that_is_quiet_at_timeout_gets_its_second_look() -> None:
    assert FakeServers(a=[0]).wait(0.0)[0].idle is True
    assert FakeServers(a=[0, 1]).wait(0.0)[0].requests == 1


def test_slice_ends_before_all_are_settled() -> None:
    found = FakeServers(a=[1]).wait(60.0, slice_seconds=2.5, elapsed=10.0)
    assert [(one.idle, one.is_settled) for one in found] == [(False, False)]
    assert idle.summary([found[0].as_dict()])["complete"] is False
    assert 12.5 <= found[0].seconds < 13.0


def test_nothing_to_wait_for_is_no_look() -> None:
    assert idle.wait_until_idle([], pytest.fail, clock=time.monotonic, sleep=time.sleep, timeout=1) == []


@contextmanager
def answering(answers: Mapping[str, tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """A server with these answers by path; its port, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            code, text = answers[self.path]
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def look(port: int, pid: int | None = None) -> Look:
    server = {"name": "a", "host": "127.0.0.1", "port": port, "api_key_file": None}
    return idle.requests_at([server], {"a": os.getpid() if pid is None else pid})["a"]


@pytest.mark.parametrize(
    ("answers", "requests", "asked"),
    [
        ({"/slots": (200, json.dumps([BUSY, FREE, BUSY]))}, 2, ["/slots"]),
        ({"/slots": (200, json.dumps([FREE]))}, 0, ["/slots"]),
        ({"/slots": (503, "loading")}, 0, ["/slots"]),
        ({"/slots": OFF, "/metrics": (200, GAUGES)}, 5, ["/slots", "/metrics"]),
    ],
)
def test_requests_are_those_that_the_server_reports(answers: Any, requests: int, asked: list[str]) -> None:
    with answering(answers) as (port, paths):
        assert look(port) == Look(requests)
    assert paths == asked


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"/slots": OFF, "/metrics": OFF}, "/slots answered 501 and /metrics answered 501"),
        ({"/slots": (401, "{}"), "/metrics": (200, "")}, "/slots answered 401 and /metrics does not say it"),
        ({"/slots": (200, '[{"id": 0}]'), "/metrics": OFF}, "/slots does not say it and /metrics answered 501"),
    ],
)
def test_connections_are_counted_where_the_server_reports_nothing(answers: Any, why: str) -> None:
    detail = f"its connections are counted, as {why}"
    with answering(answers) as (port, _paths):
        assert look(port) == Look(0, detail)
        with socket.create_connection(("127.0.0.1", port)):
            assert look(port) == Look(1, detail)


def test_hung_server_with_a_connection_has_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "PROBE_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = look(port)
    assert found.requests >= 1
    assert "/slots did not answer (timeout)" in str(found.detail) or "TimeoutError" in str(found.detail)


def test_process_of_another_on_the_port_is_not_asked() -> None:
    with answering({}) as (port, asked), subprocess.Popen(["sleep", "60"]) as other:
        found = look(port, other.pid)
        other.kill()
    assert f"port {port} is held by pid {os.getpid()}" in str(found.detail)
    assert asked == []


SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_known = self.headers.get("Authorization") == "Bearer the-key"
        body = b'[{"is_processing": true}]' if is_known else b"{}"
        self.send_response(200 if is_known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_process_says_where_it_listens_and_record_which_key_is_sent(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("the-key\n")
    (tmp_path / "other").write_text("another-file\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MAGI_LLAMA_STATE": str(tmp_path), "MAGI_LLAMA_SERVER": "a"}
    flags = ["--port", str(port), "--api-key-file", str(tmp_path / "other")]
    record = [{"name": "a", "port": 1, "api_key_file": str(tmp_path / "keys")}]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *flags], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while (found := idle.look_at(str(tmp_path), record, ["a", "b"]))["a"] != Look(1):
                assert time.monotonic() < deadline, found
                time.sleep(0.05)
        finally:
            process.kill()
    assert found["b"] == Look(0, "it is not running", False)
