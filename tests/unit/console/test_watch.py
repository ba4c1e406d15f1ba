# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch over a fleet: events of the store, the gateways' view of what is not reached, and jobs that only look."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from magi_llama_console.fleet import watch
from magi_llama_console.fleet.facts import Host, Server
from magi_llama_console.fleet.inventory import Inventory, InventoryHost
from magi_llama_console.fleet.watch import FleetWatch
from magi_llama_console.jobs.requests import Request
from magi_llama_console.settings import Settings
from magi_llama_console.store.base import CONSOLE, Job
from magi_llama_console.store.sqlite import SqliteStore

UP = 'haproxy_server_status{proxy="m",server="a_8080",state="UP"} 1\n'


class RecordedJobs:
    """Takes requests, and runs nothing."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def submit(self, request: Request, *, by: str) -> None:
        assert by == CONSOLE
        self.requests.append(request)

    def verbs(self) -> list[tuple[str, tuple[str, ...]]]:
        """The requests since the last call."""
        found = [(one.verb, one.hosts) for one in self.requests]
        self.requests.clear()
        return found


class FixedInventory:
    """Hosts a and b, of which the console reaches neither's servers, and a gateway."""

    def __init__(self, gateways: tuple[str, ...] = ()) -> None:
        hosts = {name: InventoryHost(name, f"{name}.invalid") for name in "ab"}
        self.inventory = Inventory(hosts, gateways, {"all": ("a", "b")})

    async def read(self) -> Inventory:
        return self.inventory


@pytest.fixture
def gateway() -> Iterator[str]:
    """The URL of a gateway's metrics, which say that a server of host a is up."""

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(UP.encode())

        def log_message(self, *_: Any) -> None:
            """Not on the screen."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        server.shutdown()
        thread.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the watch, in seconds."""
    seconds = [1000.0]
    monkeypatch.setattr(watch, "monotonic", lambda: seconds[0])
    return seconds


class Watched:
    def __init__(self, folder: Path, gateways: tuple[str, ...] = ()) -> None:
        (folder / "profiles").mkdir()
        (folder / "profiles/p.yml").write_text("{}\n")
        self.settings = Settings(inventory=folder, data=folder)
        self.store = SqliteStore(folder / "console.db")
        self.jobs = RecordedJobs()
        inventory: Any = FixedInventory(gateways)
        self.watch = FleetWatch(self.settings, self.store, self.jobs, inventory)  # type: ignore[arg-type]

    def know(self, *names: str) -> None:
        """Say that a status has shown a server on each of these hosts, and a scan its model."""
        server = {name: Server(name, "x", "x", 8080, "loading", False, bind_address="127.0.0.1") for name in names}
        model = {"id": "x", "context_length": 1}
        hosts = {
            name: Host(name, {"x": one}, True, True, models=(model,), models_as_of="2026", profile="p")
            for name, one in server.items()
        }
        self.watch.fleet = watch.Fleet(hosts)

    def arrived(self, *events: dict[str, Any]) -> None:
        """Have the watch see these events of the store."""
        asyncio.run(self.store.add_events(None, events))
        asyncio.run(self.watch.catch_up())

    def look(self) -> list[tuple[str, tuple[str, ...]]]:
        asyncio.run(self.watch.look())
        return self.jobs.verbs()


def event(kind: str, host: str | None = None, **data: Any) -> dict[str, Any]:
    return {"type": kind, "run": "r", "at": "2026-11-27T18:00:00.000Z", "check": False, "host": host, "data": data}


@pytest.fixture
def watched(tmp_path: Path, clock: list[float]) -> Iterator[Watched]:
    found = Watched(tmp_path)
    yield found
    asyncio.run(found.store.close())


def test_unknown_hosts_are_asked_for_their_status_every_minute(watched: Watched, clock: list[float]) -> None:
    assert watched.look() == [("status", ("a", "b"))]
    clock[0] += 59
    assert watched.look() == []
    clock[0] += 1
    assert watched.look() == [("status", ("a", "b"))]


def test_host_that_a_gateway_sees_is_asked_every_ten_minutes_only(
    tmp_path: Path, gateway: str, clock: list[float]
) -> None:
    watched = Watched(tmp_path, (gateway,))
    watched.know("a", "b")
    assert watched.look() == [("status", ("a", "b"))]
    hosts = watched.watch.fleet.hosts
    assert {name: (one.servers["x"].state, one.source) for name, one in hosts.items()} == {
        "a": ("ready", "gateway"),
        "b": ("loading", "none"),
    }
    clock[0] += watch.STATUS_SECONDS
    assert watched.look() == [("status", ("b",))]
    clock[0] += watch.FULL_STATUS_SECONDS
    assert watched.look() == [("status", ("a", "b"))]
    asyncio.run(watched.store.close())


def test_host_with_a_job_is_not_asked(watched: Watched) -> None:
    asyncio.run(watched.store.add_job(Job("j", "site", {}, ("a",), "me", "2026", state="running")))
    assert watched.look() == [("status", ("b",))]


def test_reached_host_without_a_full_registry_is_scanned_once(watched: Watched) -> None:
    watched.know("a", "b")
    watched.watch.fleet = watch.Fleet({"a": Host("a", is_known=True, is_reachable=True), "b": Host("b")})
    assert watched.look() == [("status", ("a", "b"))]
    assert [watched.look(), watched.look()] == [[("scan", ("a",))], []]


def test_known_hosts_are_compared_with_their_profile_every_hour(watched: Watched, clock: list[float]) -> None:
    watched.know("a", "b")
    watched.look()
    assert watched.look() == []
    clock[0] += watch.FIRST_DRIFT_SECONDS
    watched.look()
    asyncio.run(watched.watch.look())
    (plan,) = watched.jobs.requests
    assert (plan.verb, plan.variables) == ("plan", {"profile": "p"})


def test_changed_host_is_asked_soon_after_the_run(watched: Watched, clock: list[float]) -> None:
    def event(kind: str, **data: Any) -> dict[str, Any]:
        return {"type": kind, "run": "r", "at": "2026-11-27T18:00:00.000Z", "check": False, "data": data}

    watched.look()
    run = [event("run_started", playbook="stop.yml"), event("run_ended", rc=0, hosts={"a": {"ok": 1, "failed": 0}})]
    asyncio.run(watched.store.add_events(None, run))
    asyncio.run(watched.watch.catch_up())
    assert watched.look() == []
    clock[0] += watch.SETTLED_SECONDS
    assert watched.look() == [("status", ("a",))]


def test_fleet_is_found_again_in_the_store(watched: Watched) -> None:
    async def save_and_load() -> None:
        watched.know("a", "b")
        await watched.watch._save()
        watched.watch.fleet = watch.Fleet()
        await watched.watch._load()

    asyncio.run(save_and_load())
    assert list(watched.watch.fleet.hosts["a"].servers) == ["x"]

    # Kept without change it is not written again, and a sweep writes its own host without the models.
    written: list[tuple[str, str]] = []

    async def put_status(statuses: Any) -> None:
        written.extend((one.host, one.kind) for one in statuses)

    watched.store.put_status = put_status  # type: ignore[method-assign]
    asyncio.run(watched.watch._save())
    assert written == []
    found = watched.watch.fleet.hosts["a"]
    both = {"a": replace(found, as_of="2026-11-27T18:00:00.000Z"), "b": watched.watch.fleet.hosts["b"]}
    watched.watch.fleet = watch.Fleet(both)
    asyncio.run(watched.watch._save())
    assert written == [(CONSOLE, "fleet"), ("a", "fleet_host")]
    watched.watch.fleet = watch.Fleet({**both, "b": replace(both["b"], models=({"id": "new"},))})
    asyncio.run(watched.watch._save())
    assert written[2:] == [("b", "fleet_models"), (CONSOLE, "fleet"), ("b", "fleet_host")]


def test_event_that_cannot_be_used_does_not_hold_up_the_others(watched: Watched) -> None:
    wrong = {"profile": None, "servers": 7, "memory": {"gpus": [1], "host_ram_bytes": "abc"}}
    events = [
        event("run_started", playbook="site.yml"),
        event("plan", "a", plan=wrong),
        event("plan", "b", plan={**wrong, "servers": []}),
        {"type": "plan"},
        event("run_ended", rc=0, hosts={"a": {"ok": 1}, "b": {"ok": 1}}),
    ]
    watched.arrived(*events)
    hosts = watched.watch.fleet.hosts
    assert (watched.watch.fleet.sequence, hosts["a"].is_known, hosts["b"].is_known) == (5, False, True)
    assert (hosts["b"].ram.total_bytes, hosts["b"].gpus) == (None, ())


def test_looks_go_on_after_any_error(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    async def look() -> None:
        calls.append(1)
        watched.watch._look_now.set()
        if len(calls) == 3:
            raise asyncio.CancelledError
        raise UnicodeEncodeError("idna", "a", 0, 1, "label too long")

    monkeypatch.setattr(watched.watch, "look", look)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watched.watch._look())
    assert len(calls) == 3


def test_host_does_not_choose_the_profile_that_it_is_compared_with(watched: Watched, clock: list[float]) -> None:
    def planned() -> dict[str, str]:
        clock[0] += watch.DRIFT_SECONDS
        for _ in range(3):
            watched.watch._asked = {
                **watched.watch._asked,
                **dict.fromkeys((("status", "a"), ("status", "b")), clock[0]),
            }
            asyncio.run(watched.watch.look())
        found = [one for one in watched.jobs.requests if one.verb == "plan"]
        watched.jobs.requests.clear()
        return {host: str(one.variables["profile"]) for one in found for host in one.hosts}

    watched.know("a", "b")
    named = {"a": "p", "b": "no-such-profile"}
    watched.watch.fleet = watch.Fleet(
        {name: replace(watched.watch.fleet.hosts[name], profile=profile) for name, profile in named.items()}
    )
    assert planned() == {"a": "p"}
    (watched.settings.inventory / "profiles/own.yml").write_text("{}\n")
    inventory: Any = watched.watch._reader
    hosts = {name: replace(one, profile="own") for name, one in inventory.inventory.hosts.items()}
    inventory.inventory = replace(inventory.inventory, hosts=hosts)
    assert planned() == {"a": "own", "b": "own"}


def test_logs_that_a_status_has_read_are_those_of_its_document(watched: Watched, tmp_path: Path) -> None:
    job = Job(id="r", verb="status", variables={}, hosts=("a",), by="me", created_at="t")
    server = {"name": "x", "model_id": "x", "port": 8080, "state": "ready", "is_ready": True}
    document = {"kind": "status", "hosts": {"a": {"servers": [{**server, "log": ["one", 7]}]}, "b": {"task": None}}}
    (tmp_path / "result.json").write_text(json.dumps(document))
    events = [
        event("run_started", playbook="status.yml"),
        event("status", "a", status={"servers": [server]}),
        event("run_ended", rc=4, hosts={"a": {"ok": 1}, "b": {"unreachable": 1}}),
    ]

    async def act() -> None:
        await watched.store.add_job(job)
        await watched.store.add_events(job.id, events)
        await watched.watch.catch_up()

    watched.jobs.folder = lambda _: tmp_path  # type: ignore[attr-defined]
    asyncio.run(act())
    found = watched.watch.fleet.hosts["a"].servers["x"]
    assert (found.log, found.log_as_of, found.is_ready) == (("one",), events[-1]["at"], True)


def test_deployed_host_is_compared_again(watched: Watched) -> None:
    watched.watch._asked = {("plan", "a"): 1000.0, ("plan", "b"): 1000.0}
    watched.arrived(event("run_started", playbook="site.yml"), event("run_ended", rc=0, hosts={"a": {"ok": 1}}))
    assert list(watched.watch._asked) == [("plan", "b")]


def test_result_document_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for text in ("", "7", '{"hosts": 7}', '{"hosts": ' + "[" * 100_000):
        path.write_text(text)
        assert watch.read_document(path) is None
