# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators load and unload models through the console: a real HAProxy before a fake of one, as a real one is slow."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.console import (
    BACKEND,
    NOT_FOR_THE_CONSOLE,
    console_address,
    read_token,
)
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend, GatewayError
from ansible_collections.magi.llama.plugins.module_utils._gateway.server_lines import states_for
from ansible_collections.magi.llama.plugins.module_utils._gateway.settings import Settings
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, TOKEN, Running, free_port, rendered, running, server

needs_haproxy = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
KEYS = {"op": "a-key-of-op", "alice": "a-key-of-alice"}


class FakeConsole(ThreadingHTTPServer):
    """Answers each POST with what it has been given, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status: int = 200
        self.body: Any = {"model_id": "on", "servers": []}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __exit__(self, *args: Any) -> None:
        self.shutdown()
        super().__exit__(*args)


class _Handler(BaseHTTPRequestHandler):
    server: FakeConsole

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        body = json.dumps(self.server.body).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, FakeConsole, FakeServer]]:
    """A gateway with a console, before a model that runs, one on demand, and one that is stopped."""
    with FakeServer("on") as always, FakeServer("lazy") as asleep, FakeServer("gone") as gone, FakeConsole() as console:
        lazy = replace(server(asleep.port), is_on_demand=True, idle_seconds=60)
        backends = [
            Backend("on", "On", "Q4", "model", (server(always.port),)),
            Backend("lazy", "Lazy", "Q4", "model", (lazy,)),
            Backend("gone", "Gone", "Q4", "model", (server(gone.port),)),
        ]
        clients = [
            Client(name, hashlib.sha256(key.encode()).hexdigest(), operator=name == "op") for name, key in KEYS.items()
        ]
        folder = tmp_path_factory.mktemp("g")
        with running(folder, backends, clients, console_url=console.url) as gateway:
            gateway.admin.do(f"set server gone/s_{gone.port} state maint")
            yield gateway, console, asleep


def ask(gateway: Running, verb: str, model: str, who: str = "op") -> Any:
    with gateway.client(KEYS[who]) as asking:
        return asking.post(f"/models/{verb}", json={"model": model}, headers={"Cookie": "a=b"})


@needs_haproxy
@pytest.mark.parametrize(
    ("verb", "model", "path"),
    [
        ("unload", "on", "/api/v1/models/on/unload?wait=300"),
        ("unload", "lazy", "/api/v1/models/lazy/unload?wait=300"),
        ("load", "gone", "/api/v1/models/gone/load?wait=300"),
    ],
)
@pytest.mark.parametrize("status", [200, 202])
def test_console_does_what_no_server_can(parts: Any, verb: str, model: str, path: str, status: int) -> None:
    gateway, console, _asleep = parts
    console.seen.clear()
    console.status, console.body = status, {"model_id": model, "servers": []}
    answer = ask(gateway, verb, model)
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    [(asked, headers)] = console.seen
    assert asked == path
    # The client's own credentials stay at the gateway.
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert "cookie" not in headers and KEYS["op"] not in str(headers)


@needs_haproxy
def test_headers_of_a_client_that_the_console_would_believe_stay_at_the_gateway(parts: Any) -> None:
    gateway, console, _asleep = parts
    console.seen.clear()
    console.status, console.body = 200, {"model_id": "on", "servers": []}
    assert {"Idempotency-Key", "Origin", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto"} < {*NOT_FOR_THE_CONSOLE}
    # The client's key is one of them.
    sent = {name: "on" for name in NOT_FOR_THE_CONSOLE if name not in ("Authorization", "X-Api-Key")}
    with gateway.client(KEYS["op"]) as asking:
        assert asking.post("/models/unload", json={"model": "on"}, headers=sent).json() == {"success": True}
        assert asking.post("/models/unload", json={"model": "on"}, headers={"X-Other": "on"}).status_code == 200
    (_path, headers), (_path, others) = console.seen
    assert not {name.lower() for name in sent} & headers.keys() and others["x-other"] == "on"


@needs_haproxy
def test_model_on_demand_is_loaded_by_its_server(parts: Any) -> None:
    gateway, console, asleep = parts
    console.seen.clear()
    assert ask(gateway, "load", "lazy").json() == {"success": True}
    assert console.seen == [] and asleep.seen[-1][0] == "/tokenize"


@needs_haproxy
@pytest.mark.parametrize(
    ("status", "body", "shown", "code"),
    [
        (404, {"detail": "There is no deployed model on."}, 404, "model_not_found"),
        (502, {"detail": 'Job 1 (stop): "on" %d is busy'}, 502, "console_failed"),
        (401, {"detail": "The token is not known."}, 502, "console_failed"),
        (500, "no document", 502, "console_failed"),
    ],
)
def test_error_of_the_console_is_one_of_the_gateway(parts: Any, status: int, body: Any, shown: int, code: str) -> None:
    gateway, console, _asleep = parts
    console.status, console.body = status, body
    answer = ask(gateway, "unload", "on")
    assert (answer.status_code, answer.json()["error"]["code"]) == (shown, code)
    why = body["detail"] if isinstance(body, dict) else "it gives no reason"
    assert answer.json()["error"]["message"] == f"The console: {why}"


@needs_haproxy
def test_others_do_not_reach_the_console(parts: Any) -> None:
    gateway, console, _asleep = parts
    console.seen.clear()
    assert ask(gateway, "unload", "on", "alice").status_code == 404
    assert ask(gateway, "unload", "none").status_code == 404
    with gateway.client(KEYS["op"]) as asking:
        assert asking.get("/api/v1/jobs").status_code == 404
    assert console.seen == []


@needs_haproxy
def test_console_that_comes_to_a_running_gateway_is_used(tmp_path: Path) -> None:
    with FakeServer("on") as always, FakeConsole() as console:
        backends = [Backend("on", "On", "Q4", "model", (server(always.port),))]
        clients = [Client("op", hashlib.sha256(KEYS["op"].encode()).hexdigest(), operator=True)]
        with running(tmp_path, backends, clients) as gateway:
            ports = [int(url.rpartition(":")[2]) for url in (gateway.url, gateway.metrics)]
            files = rendered(backends, clients, port=ports[0], metrics_port=ports[1], console_url=console.url)
            # As a run does it: the states of servers go to the next process.
            states = states_for(files["haproxy.cfg"], gateway.admin.ask("show servers state"))
            (tmp_path / "servers.state").write_text(states)
            gateway.write(files)
            gateway.reload()
            assert ask(gateway, "unload", "on").json() == {"success": True}


@needs_haproxy
def test_console_that_is_away_is_named(tmp_path: Path) -> None:
    with FakeServer("on") as always:
        backends = [Backend("on", "On", "Q4", "model", (server(always.port),))]
        clients = [Client("op", hashlib.sha256(KEYS["op"].encode()).hexdigest(), operator=True)]
        with running(tmp_path, backends, clients, console_url=f"http://127.0.0.1:{free_port()}") as gateway:
            answer = ask(gateway, "unload", "on")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "console_unreachable")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000, False)),
        ("http://[::1]:8000/", ("::1", 8000, False)),
        ("https://console.example.com", ("console.example.com", 443, True)),
    ],
)
def test_console_is_named_by_its_url(url: str, found: tuple[str, int, bool]) -> None:
    assert console_address(Settings(console_url=url)) == found


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("console:8000", "must be http or https with host and port only"),
        ("http://127.0.0.1:8000/api", "must be http or https with host and port only"),
        ("http://me:secret@127.0.0.1", "must be http or https"),
        ("http://127.0.0.1:x", "is not a URL"),
        ("http://console.example.com:8000", "would send the console's token over the network"),
    ],
)
def test_other_urls_are_refused(url: str, error: str) -> None:
    with pytest.raises(GatewayError, match=error):
        console_address(Settings(console_url=url))


def test_token_is_read_and_kept_while_its_file_is_away(tmp_path: Path) -> None:
    path = tmp_path / "token"
    settings, warnings = Settings(console_url="http://127.0.0.1", console_token_file=str(path)), list[str]()
    with pytest.raises(GatewayError, match=f"{path} cannot be read on the gateway: No such file"):
        read_token(settings, {}, warnings)
    assert read_token(settings, {"secrets.map": f"{BACKEND} used-before\nm key\n"}, warnings) == "used-before"
    assert len(warnings) == 1
    path.write_text(" a-token-of-it\n")
    assert read_token(settings, {}, warnings) == "a-token-of-it"
    for text in ("", "two\ntokens-in-it", "short"):
        path.write_text(text)
        with pytest.raises(GatewayError, match="must have one token"):
            read_token(settings, {}, warnings)
    with pytest.raises(GatewayError, match="gateway_console_url is set without gateway_console_token_file"):
        read_token(replace(settings, console_token_file=""), {}, warnings)


@needs_haproxy
@pytest.mark.parametrize("host", ["localhost", "no-such-name.invalid"])
def test_console_with_tls_is_verified_and_its_name_may_be_unknown(tmp_path: Path, host: str) -> None:
    """HAProxy takes the configuration; the certificates of the system prove the console."""
    files = rendered([], console_url=f"https://{host}:8443")
    assert f"ssl verify required ca-file @system-ca sni str({host}) verifyhost {host}" in files["haproxy.cfg"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = {"PATH": "/usr/bin:/bin", "MAGI_GATEWAY": str(tmp_path), "MAGI_GATEWAY_RUN": str(tmp_path)}
    command = [HAPROXY, "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # A name that cannot be resolved must not keep the gateway from starting.
    assert done.returncode == 0, done.stderr
