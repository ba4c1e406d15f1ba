# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""200 fake servers on 50 hosts: listeners that answer /health, deployed by runs of support/fake_playbook.py."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from support.console import RunningConsole

HOSTS, SERVERS_EACH = 50, 4
PROGRAMS = Path(sys.executable).parent


class FakeServers(threading.Thread):
    """Listeners in a thread: each answers 200 to any request, until it is closed."""

    def __init__(self, count: int) -> None:
        super().__init__(daemon=True)
        self.count, self.ports = count, list[int]()
        self.loop = asyncio.new_event_loop()
        self.listeners: list[asyncio.Server] = []
        self.are_ready = threading.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self._listen())
        self.are_ready.set()
        self.loop.run_forever()

    async def _listen(self) -> None:
        self.listeners = [await asyncio.start_server(self._answer, "127.0.0.1", 0) for _ in range(self.count)]
        self.ports = [one.sockets[0].getsockname()[1] for one in self.listeners]

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            # A sweep that did not wait any longer.
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    def close(self, index: int) -> None:
        self.loop.call_soon_threadsafe(self.listeners[index].close)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()
        self.loop.close()

    async def _close_all(self) -> None:
        for listener in self.listeners:
            listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)


def status_of(host: int, ports: list[int]) -> dict[str, Any]:
    """The status document of a host whose servers listen on these ports. They are not ready yet."""
    servers = [
        {
            "name": f"model-{place}",
            "model_id": f"model-{place}",
            "display_name": f"Model {place} (Q4_K_M)",
            "port": port,
            "pid": 100 + place,
            "is_ready": False,
            "tier": "Q4",
            "state": "loading",
            "uptime_seconds": 60,
            "rss_bytes": 1 << 30,
            "restarts": 0,
            "bind_address": "127.0.0.1",
            "profile": "mine",
        }
        for place, port in enumerate(ports)
    ]
    return {"total_servers": len(servers), "ready_servers": 0, "servers": servers, "host": f"node{host}"}


@contextmanager
def fake_programs(folder: Path) -> Iterator[tuple[str, ...]]:
    """The options of a console whose runs are fake."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ansible-inventory").symlink_to(PROGRAMS / "ansible-inventory")
    script = Path(__file__).parents[1] / "support/fake_playbook.py"
    (programs / "ansible-playbook").write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    (programs / "ansible-playbook").chmod(0o755)
    yield ("--ansible-bin", str(programs), "--pass-environment", "FAKE_PLAYBOOK")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[RunningConsole, FakeServers]]:
    servers = FakeServers(HOSTS * SERVERS_EACH)
    servers.start()
    servers.are_ready.wait()
    hosts = [f"node{number}" for number in range(HOSTS)]
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": {name: {"ansible_connection": "local"} for name in hosts}}}))
    parts = [servers.ports[place : place + SERVERS_EACH] for place in range(0, servers.count, SERVERS_EACH)]
    sent = [
        {"host": hosts[number], "type": "status", "data": {"status": status_of(number, ports)}}
        for number, ports in enumerate(parts)
    ]
    described = tmp_path / "fake.json"
    described.write_text(json.dumps({"send": sent, "events": 0}))
    environment = {"FAKE_PLAYBOOK": str(described)}
    try:
        with (
            fake_programs(tmp_path) as options,
            RunningConsole(inventory, tmp_path / "console", arguments=options, environment=environment) as console,
        ):
            yield console, servers
    finally:
        servers.stop()


def ask_until(console: RunningConsole, path: str, is_so: Callable[[Any], bool], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not is_so(answer := console.read.get(path).json()):
        assert time.monotonic() < deadline, str(answer)[:2000]
        time.sleep(0.2)
    return answer


def test_fleet_of_fake_servers_is_shown_as_its_health_is(fleet: tuple[RunningConsole, FakeServers]) -> None:
    console, fake = fleet
    found = ask_until(
        console, "/api/v1/servers", lambda answer: sum(one["is_ready"] for one in answer["servers"]) == 200
    )
    assert (len(found["servers"]), found["source"]) == (200, "sweep")
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        assert console.read.get("/api/v1/servers").status_code == 200
        times.append(time.perf_counter() - begun)
    print(f"GET of 200 servers: p50 {sorted(times)[100] * 1e3:.1f} ms, p95 {quantiles(times, n=20)[18] * 1e3:.1f} ms")
    fake.close(0)
    found = ask_until(
        console, "/api/v1/servers?host=node0", lambda answer: not all(one["is_ready"] for one in answer["servers"])
    )
    (down,) = [one for one in found["servers"] if not one["is_ready"]]
    assert (down["state"], down["reason"].split(":")[0]) == ("unhealthy", "Nothing answers on its port")
    hosts = console.read.get("/api/v1/hosts").json()["hosts"]
    assert {one["name"]: one["state"] for one in hosts if one["state"] != "ok"} == {"node0": "degraded"}


def test_what_is_known_outlives_the_console(fleet: tuple[RunningConsole, FakeServers]) -> None:
    console, _ = fleet
    ask_until(console, "/api/v1/servers", lambda answer: sum(one["is_ready"] for one in answer["servers"]) == 200)
    console.stop()
    console.start()
    found = console.read.get("/api/v1/servers").json()
    assert (len(found["servers"]), found["as_of"] is not None) == (200, True)
