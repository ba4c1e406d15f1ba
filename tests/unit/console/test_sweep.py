# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sweep: 200 fake servers at once, the states that their answers mean, and what is never asked."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import replace

import pytest
from magi_llama_console.fleet.facts import Server
from magi_llama_console.fleet.sweep import (
    DEADLINE_SECONDS,
    MAX_BYTES,
    MAX_METRICS_BYTES,
    MAX_SLOTS,
    Target,
    gateway_states,
    read_metrics,
    read_slots,
    sweep,
    target,
)

FLEET = 200


class FakeServers:
    """Listeners that answer as llama-server's /health does: each with a status, or with none at all."""

    def __init__(self) -> None:
        self.requests = 0

    @asynccontextmanager
    async def running(self, statuses: list[int | None]) -> AsyncIterator[list[Target]]:
        listeners = [await asyncio.start_server(self._answer(status), "127.0.0.1", 0) for status in statuses]
        ports = [listener.sockets[0].getsockname()[1] for listener in listeners]
        try:
            yield [
                Target(f"host{number // 4}", f"fake{number}", f"http://127.0.0.1:{port}/health")
                for number, port in enumerate(ports)
            ]
        finally:
            for listener in listeners:
                listener.close()

    def _answer(self, status: int | None):  # type: ignore[no-untyped-def]
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests += 1
            with closing(writer):
                await reader.readuntil(b"\r\n\r\n")
                if status is None:
                    await asyncio.sleep(5)
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
                await writer.drain()

        return answer


def test_fleet_of_fake_servers_is_swept_in_one_go() -> None:
    async def swept(statuses: list[int | None], deadline_seconds: float) -> tuple[dict[tuple[str, str], str], float]:
        fake = FakeServers()
        async with fake.running(statuses) as targets:
            begun = time.monotonic()
            found = await sweep(targets, deadline_seconds)
            seconds = time.monotonic() - begun
        # Each is asked once.
        assert fake.requests <= len(statuses)
        return {key: one["state"] for key, one in found.items()}, seconds

    # A busy machine may make some late: what each of them says is looked at with more patience.
    _, seconds = asyncio.run(swept([200] * FLEET, DEADLINE_SECONDS))
    print(f"sweep of {FLEET} fake servers: {seconds:.3f} s")
    states, _ = asyncio.run(swept([200] * (FLEET - 4) + [503, 500, None, None], 4.0))
    assert len(states) == FLEET
    assert [states["host49", f"fake{number}"] for number in range(196, 200)] == ["loading", *["unhealthy"] * 3]
    assert list(states.values()).count("ready") == FLEET - 4


def test_silent_servers_do_not_outlast_the_deadline() -> None:
    """As many silent servers as connections are open at once hold no other one up beyond the deadline."""

    async def silent() -> dict[tuple[str, str], dict[str, object]]:
        async with FakeServers().running([None] * 140) as targets:
            return await asyncio.wait_for(sweep(targets), DEADLINE_SECONDS * 4)

    found = asyncio.run(silent())
    assert {(one["state"], one["is_late"]) for one in found.values()} == {("unhealthy", True)}
    assert len(found) == 140


def test_closed_port_says_why() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        found = asyncio.run(sweep([Target("a", "x", f"http://127.0.0.1:{port}/health")]))
    assert found["a", "x"]["state"] == "unhealthy"
    assert str(found["a", "x"]["reason"]).startswith("Nothing answers on its port")


def server(**more: object) -> Server:
    return Server("a", "x", "x", 8080, "ready", True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "is_local", "url"),
    [
        ("127.0.0.1", False, None),
        ("127.0.0.1", True, "http://127.0.0.1:8080/health"),
        ("127.0.0.2", False, None),
        ("::ffff:127.0.0.1", False, None),
        ("0.0.0.0", False, "http://10.0.0.5:8080/health"),
        ("0.0.0.0", True, "http://127.0.0.1:8080/health"),
        ("::1", True, "http://[::1]:8080/health"),
        ("::", False, "http://10.0.0.5:8080/health"),
        ("::", True, "http://[::1]:8080/health"),
        ("10.0.0.5", False, "http://10.0.0.5:8080/health"),
        # Another machine, for all that is known here: a host says this of itself.
        ("10.1.1.1", False, None),
        ("192.0.2.1", True, None),
        ("169.254.169.254/latest?", False, None),
        ("a" * 300, False, None),
        ("localhost", True, None),
        (None, True, None),
    ],
)
def test_server_is_asked_where_the_console_reaches_it(bound: str | None, is_local: bool, url: str | None) -> None:
    found = target(server(bind_address=bound), "10.0.0.5", is_local)
    assert (found and found.url) == url


def test_host_of_which_only_the_name_is_known_is_asked_by_it() -> None:
    found = target(server(bind_address="10.1.1.1"), "gpu1.example.net", False)
    assert found is not None and found.url == "http://gpu1.example.net:8080/health"


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_that_no_server_can_have_is_not_asked(port: int) -> None:
    assert target(replace(server(bind_address="0.0.0.0"), port=port), "10.0.0.5", False) is None


def test_address_that_no_url_can_have_is_only_its_own_servers_trouble() -> None:
    found = asyncio.run(sweep([Target("a", "x", f"http://{'a' * 300}:8080/health"), Target("b", "y", "http://[:1/")]))
    assert {one["state"] for one in found.values()} == {"unhealthy"} and len(found) == 2


@contextmanager
def answering(body: bytes, *headers: str) -> Iterator[int]:
    """The port of a server that gives this answer to everything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with suppress(ConnectionError), listener.accept()[0] as found:
                        found.recv(65536)
                        lines = ["HTTP/1.1 200 OK", "Connection: close", *headers, "", ""]
                        found.sendall("\r\n".join(lines).encode() + body)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def slots_of(body: bytes, *headers: str) -> list[dict[str, object]] | None:
    with answering(body, *headers) as port:
        one = replace(server(bind_address="127.0.0.1"), port=port)
        return asyncio.run(read_slots(one, "127.0.0.1", True, seconds=20))


def test_slots_are_read_with_their_types_only() -> None:
    slots = [{"id": 0, "is_processing": True, "n_ctx": 4096}, {"id": 1, "n_ctx": float("nan")}, {"id": "x"}, 7]
    assert slots_of(json.dumps(slots).encode()) == [
        {"id": 0, "is_processing": True, "n_ctx": 4096},
        {"id": 1, "is_processing": False, "n_ctx": None},
    ]
    assert slots_of(b"[" * 100_000) is None


def test_answers_are_read_up_to_a_limit_and_never_unpacked() -> None:
    one = {"id": 1, "is_processing": False}
    found = slots_of(json.dumps([one] * 5000).encode())
    assert found is not None and len(found) == MAX_SLOTS
    assert slots_of(json.dumps([one]).encode() + b" " * MAX_BYTES) is None
    assert slots_of(gzip.compress(json.dumps([one]).encode()), "Content-Encoding: gzip") is None
    line = 'haproxy_server_status{proxy="m",server="a_8080",state="UP"} 1\n'
    for body, text in ((line.encode(), line), (line.encode() + b"#" * MAX_METRICS_BYTES, "")):
        with answering(body) as port:
            assert asyncio.run(read_metrics(f"http://127.0.0.1:{port}/metrics", seconds=20)) == text


def test_server_with_tls_is_asked_by_https_and_one_on_demand_not_at_all() -> None:
    secure = target(server(bind_address="0.0.0.0", has_tls=True), "a", False)
    assert secure is not None and secure.url.startswith("https://")
    assert target(server(bind_address="0.0.0.0", is_on_demand=True), "a", False) is None


def test_gateways_metrics_name_states_of_servers() -> None:
    metrics = "".join(
        f'haproxy_server_status{{proxy="m",server="a_808{port}",state="{state}"}} {value}\n'
        for port, state, value in [(0, "UP", 1), (0, "DOWN", 0), (1, "DOWN", 1), (2, "MAINT", 1), (3, "UP", 1)]
    )
    servers = {f"a_808{port}": ("a", f"s{port}") for port in range(3)}
    found = {key: one["state"] for key, one in gateway_states(metrics, servers).items()}
    assert found == {("a", "s0"): "ready", ("a", "s1"): "unhealthy"}
