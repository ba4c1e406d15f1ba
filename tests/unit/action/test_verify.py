# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server is probed with a token: at addresses of the inventory alone, otherwise on the host."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.action import verify
from ansible_collections.magi.llama.plugins.action.verify import Asking, who_asks
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN

PORTS = range(8080, 8100)


@pytest.mark.parametrize(
    ("listens", "has_keys", "given", "local", "expected"),
    [
        ("127.0.0.1", False, None, True, "127.0.0.1"),
        ("127.0.0.1", False, None, False, None),
        ("0.0.0.0", False, None, False, "gpu1"),
        # servers_host of the inventory.
        ("10.0.0.7", False, None, False, "10.0.0.7"),
        # An address that only the host knows: it may be anyone's.
        ("192.0.2.9", False, "given", False, None),
        # The host's own file has the keys, so none has to be passed.
        ("0.0.0.0", True, None, False, None),
        ("0.0.0.0", True, "given", False, "gpu1"),
        ("127.0.0.1", True, "given", False, None),
        ("0.0.0.0", True, None, True, None),
    ],
)
def test_probe_location_by_host(
    listens: str, has_keys: bool, given: str | None, local: bool, expected: str | None
) -> None:
    server = {"name": "a", "port": 8080, "host": listens, "api_key_file": "/etc/keys" if has_keys else None}
    asked, behind = who_asks([server], Asking("gpu1", "10.0.0.7", PORTS, given, local))
    assert asked == ([(server, expected)] if expected else [])
    assert behind == ([] if expected else [server])


def test_port_outside_the_range_is_not_asked_from_here() -> None:
    """A host could name the port of another service, which would get the key."""
    server = {"name": "a", "port": 22, "host": "0.0.0.0"}
    assert who_asks([server], Asking("gpu1", "0.0.0.0", PORTS, "key")) == ([], [server])


# --- the action -------------------------------------------------------------------------------------------------------

Handler = Callable[[socket.socket], None]


@pytest.fixture
def listen() -> Iterator[Callable[[Handler], int]]:
    """Starts a listener on a free port, whose connections the handler gets."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def start(handler: Handler) -> int:
            def serve() -> None:
                while True:
                    try:
                        connection, _address = server.accept()
                        with connection:
                            handler(connection)
                    except OSError:
                        if server.fileno() < 0:
                            return

            threading.Thread(target=serve, daemon=True).start()
            return int(server.getsockname()[1])

        yield start


def deployed(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {
        "changed": False,
        "refused": [],
        "deployed": [{"name": "a", "model_id": "a", "port": port, "argv": [], "host": host}],
    }


def health(port: int) -> dict[str, Any]:
    server = {
        **{"name": "a", "port": port, "tier": None, "pid": 7, "state": "ready", "is_ready": True, "is_settled": True},
        **{"became_ready": False, "seconds_to_ready": None, "token_seconds": 0.1, "restarts": 0},
        "tokens_per_second": 216.4,
        **{"detail": None, "fix": None, "log_tail": []},
    }
    counts = {"ready": 1, "complete": True, "failed_servers": [], "unprotected_servers": []}
    return {"changed": False, "servers": [server], **counts}


def arguments(port: int, **more: Any) -> dict[str, Any]:
    return {"state_dir": "/s", "port_range_start": port, "port_range_end": port, "timeout": 5, **more}


def test_answer_above_the_limit_is_not_read(run_action, listen) -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        for _part in range(800):
            sent.append(connection.send(b"x" * 2**20))

    port = listen(flood)
    run = run_action("verify", arguments(port), answers=[deployed(port), {**deployed(port)}], transport="local")
    assert run.result["servers"][0]["error"].endswith("the answer is longer than 1048576 bytes")
    assert sum(sent) < 50 * 2**20


def test_answer_in_drops_has_one_deadline(run_action, listen) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _part in range(100):
            connection.send(b" ")
            time.sleep(0.1)

    port = listen(drip)
    began = time.monotonic()
    answers = [deployed(port), deployed(port)]
    run = run_action("verify", arguments(port, timeout=0.5), answers=answers, transport="local")
    assert time.monotonic() - began < 3
    assert "no answer within 0.5 s" in run.result["servers"][0]["error"]
    assert run.result["servers"][0]["own_fault"]


def test_unreachable_from_here_is_asked_by_the_host(run_action, monkeypatch) -> None:
    """A firewall, or a bastion."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    more = {"ansible_host": "127.0.0.1"}
    run = run_action("verify", arguments(port), answers=[deployed(port, "0.0.0.0"), health(port)], **more)
    assert [name for name, _sent in run.calls] == ["verify", "wait_for_health"]
    assert [(server["via"], server["ok"]) for server in run.result["servers"]] == [("host", True)]
    assert run.result["servers"][0]["tokens_per_second"] == 216.4
    assert run.lines == [f"h | a port {port}: ok in 0.10 s, 216.4 tokens/s"]
    asking = arguments(port, request_from="controller")
    run = run_action("verify", asking, answers=[deployed(port, "0.0.0.0")] * 2, **more)
    assert run.result["failed"] and "ConnectError" in run.result["msg"]


def test_request_from_host_sends_nothing_from_here(run_action, monkeypatch) -> None:
    monkeypatch.setattr(verify, "httpx", None)
    asking = arguments(8080, request_from="host")
    run = run_action("verify", asking, answers=[deployed(8080, "0.0.0.0"), health(8080)])
    assert run.result["servers"][0]["via"] == "host" and not run.result.get("failed")


def test_request_from_controller_names_what_only_the_host_can_ask(run_action) -> None:
    asking = arguments(8080, request_from="controller", host="0.0.0.0")
    run = run_action("verify", asking, answers=[deployed(8080, "192.0.2.9")] * 2)
    assert "it listens on 192.0.2.9, which is not an address of the inventory" in run.result["msg"]


def test_speed_that_the_controller_sees_is_noted_on_the_host(run_action, listen) -> None:
    body = json.dumps({"content": "x", "timings": {"predicted_n": 8, "predicted_ms": 70.0}}).encode()

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    port = listen(answer)
    run = run_action("verify", arguments(port), answers=[deployed(port)] * 2, transport="local")
    assert run.result["servers"][0]["tokens_per_second"] == 100.0
    assert run.calls[1][1][FILLED_IN]["speeds"] == {"a": 100.0}
