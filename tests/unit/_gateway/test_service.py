# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order requests are served, by which server, and that they reach it whole: a real HAProxy and fakes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import Backend
from ansible_collections.magi.llama.plugins.module_utils._gateway.frontend import POST_PATHS
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, running, server

pytestmark = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
LARGE = 20_000_000


def client(name: str, **limits: int) -> Client:
    return Client(name, hashlib.sha256(f"key-of-{name}".encode()).hexdigest(), **limits)


class Held:
    """A gateway before servers with one slot each, which answer once they are let."""

    def __init__(self, gateway: Running, fakes: list[FakeServer], pool: ThreadPoolExecutor) -> None:
        self.gateway, self.fakes, self.pool = gateway, fakes, pool

    def send(self, who: str, key: str | None = None) -> Future[Any]:
        """Send a request; returns once it is under way or waits."""
        before = self._here()
        sent = self.pool.submit(self.gateway.ask, "m", key, prompt=who)
        self._until(before + 1)
        return sent

    def _until(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self._here() < count:
            assert time.monotonic() < deadline, self.gateway.log.read_text()[-2000:]
            time.sleep(0.01)

    def _here(self) -> int:
        header, *lines = self.gateway.admin.ask("show stat -1 2 -1").splitlines()
        columns = header.lstrip("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines if line]
        waiting = sum(int(row["qcur"]) for row in rows if row["pxname"] == "m")
        return waiting + sum(len(fake.seen) for fake in self.fakes)


@contextlib.contextmanager
def held(folder: Path, *clients: Client, servers: int = 1) -> Iterator[Held]:
    with contextlib.ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer()) for _ in range(servers)]
        backend = Backend("m", "M", "Q4", "model", tuple(server(fake.port, 1) for fake in fakes))
        gateway = stack.enter_context(running(folder, [backend], clients, models={"m": {"hang_timeout": 600}}))
        pool = stack.enter_context(ThreadPoolExecutor(32))
        for fake in fakes:
            fake.hangs = True
            stack.callback(let, fake)
        yield Held(gateway, fakes, pool)


def let(fake: FakeServer) -> None:
    fake.hangs = False
    fake.released.set()


def served(fake: FakeServer) -> list[str]:
    return [json.loads(body)["prompt"] for _path, _headers, body in fake.seen]


def test_flood_of_one_key_delays_no_other_by_more_than_a_request(tmp_path: Path) -> None:
    with held(tmp_path, client("flood"), client("other")) as found:
        sent = [found.send("flood", "key-of-flood") for _ in range(20)]
        sent.append(found.send("other", "key-of-other"))
        let(found.fakes[0])
        assert {one.result().status_code for one in sent} == {200}
        # Only what the slot had before.
        assert served(found.fakes[0]) == ["flood", "other", *["flood"] * 19]


def test_clients_take_turns(tmp_path: Path) -> None:
    with held(tmp_path, client("a"), client("b")) as found:
        sent = [found.send(who, f"key-of-{who}") for who in "aaaabbbb"]
        let(found.fakes[0])
        assert {one.result().status_code for one in sent} == {200}
        assert "".join(served(found.fakes[0])) == "abababab"


def test_priority_decides_who_is_served_first(tmp_path: Path) -> None:
    with held(tmp_path, client("urgent", priority=-100), client("usual"), client("late", priority=100)) as found:
        order = ["usual", "late", "late", "usual", "usual", "urgent", "urgent"]
        sent = [found.send(who, f"key-of-{who}") for who in order]
        let(found.fakes[0])
        assert {one.result().status_code for one in sent} == {200}
        assert served(found.fakes[0]) == ["usual", "urgent", "urgent", "usual", "usual", "late", "late"]


def test_no_request_waits_at_a_busy_server_while_another_is_idle(tmp_path: Path) -> None:
    with held(tmp_path, servers=2) as found:
        first = found.send("first")
        [busy] = [fake for fake in found.fakes if fake.seen]
        [idle] = [fake for fake in found.fakes if not fake.seen]
        let(idle)
        # One after another, and at once.
        answers = [found.gateway.ask("m") for _ in range(4)]
        answers += [one.result() for one in [found.pool.submit(found.gateway.ask, "m") for _ in range(8)]]
        assert {(answer.status_code, answer.json()["port"]) for answer in answers} == {(200, idle.port)}
        assert len(busy.seen) == 1
        assert not first.done()


def test_request_that_waits_goes_to_the_server_that_is_free_first(tmp_path: Path) -> None:
    with held(tmp_path, servers=2) as found:
        sent = [found.send(who) for who in ("one", "two", "three")]
        last = found.fakes[1]
        let(last)
        assert sent[2].result().json()["port"] == last.port
        assert len(found.fakes[0].seen) == 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, FakeServer]]:
    with FakeServer() as fake:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        with running(tmp_path_factory.mktemp("plain"), [backend]) as gateway:
            yield gateway, fake


@pytest.mark.parametrize("path", POST_PATHS)
def test_request_of_each_path_reaches_the_server_as_it_is(plain: tuple[Running, FakeServer], path: str) -> None:
    gateway, fake = plain
    body = '{"input":"ö","documents":["a"], "model" : "m"}'
    with gateway.client() as asking:
        found = asking.post(f"{path}?a=b", content=body.encode(), headers={"Content-Type": "application/json"})
    assert found.status_code == 200
    assert fake.seen[-1][0] == f"{path}?a=b"
    assert fake.seen[-1][2] == body
    assert found.headers["x-magi-model"] == "m"


def test_form_reaches_the_server(plain: tuple[Running, FakeServer]) -> None:
    gateway, fake = plain
    with gateway.client() as asking:
        found = asking.post("/v1/audio/transcriptions", data={"model": "m"}, files={"file": ("a.wav", b"RIFF" * 1000)})
    assert found.status_code == 200
    assert "RIFF" * 1000 in fake.seen[-1][2]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("by", ["model first", "X-Model", "model last"])
def test_body_above_the_buffer(plain: tuple[Running, FakeServer], by: str, chunked: bool) -> None:
    gateway, fake = plain
    before = len(fake.seen)
    prompt = f'"prompt":"{"a" * LARGE}"'
    body = {
        "model first": '{"model":"m",' + prompt + "}",
        "X-Model": "{" + prompt + "}",
        "model last": "{" + prompt + ',"model":"m"}',
    }[by].encode()
    headers = {"Content-Type": "application/json", **({"X-Model": "m"} if by == "X-Model" else {})}
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    with gateway.client() as asking:
        found = asking.post("/v1/completions", content=pieces if chunked else body, headers=headers)
    if by == "model last":
        assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")
        assert len(fake.seen) == before
    else:
        assert found.status_code == 200
        assert len(fake.seen[-1][2]) == len(body)


def test_failed_connection_alone_takes_no_server_out(tmp_path: Path) -> None:
    """A gateway without a processor for a moment loses a connection to every server: requests are still sent there."""
    with FakeServer() as fake, ThreadPoolExecutor(1) as pool:
        backend = Backend("m", "M", "Q4", "model", (server(fake.port),))
        body = {"model": "m", "prompt": "a"}
        with running(tmp_path, [backend]) as gateway, gateway.client() as client:
            # Its connection is there.
            client.get("/v1/models")
            fake.shutdown()
            fake.server_close()
            asked = pool.submit(gateway.ask, "m")
            while not int(gateway.admin.statistics()["m", f"s_{fake.port}"]["wretr"]):
                assert not asked.done(), asked.result().text
            with FakeServer(port=fake.port):
                assert client.post("/v1/completions", json=body).status_code == 200
                assert asked.result().status_code == 200


def test_dead_server_costs_no_request_and_is_soon_out(tmp_path: Path) -> None:
    with FakeServer() as dead, FakeServer() as fake:
        servers = (server(dead.port), server(fake.port))
        with running(tmp_path, [Backend("m", "M", "Q4", "model", servers)]) as gateway:
            dead.shutdown()
            dead.server_close()
            for _request in range(4):
                began = time.monotonic()
                assert gateway.ask("m").json()["port"] == fake.port
                assert time.monotonic() - began < 1
            gateway.wait_until({f"s_{dead.port}": "DOWN"}, 2)
