# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator's key opens: which models are loaded, and loading one, as with llama-server's router."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._gateway.clients import Client, parse_clients
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import (
    Backend,
    DocumentError,
    GatewayError,
    check_host,
    host_entry,
)
from support.fake_server import FakeServer
from support.running_gateway import HAPROXY, Running, running, server

needs_haproxy = pytest.mark.skipif(not os.path.exists(HAPROXY), reason="no HAProxy on this machine")
KEYS = {name: f"a-key-of-{name}" for name in ("op", "alice", "narrow")}


def client(name: str, models: tuple[str, ...] = (), *, operator: bool) -> Client:
    return Client(name, hashlib.sha256(KEYS[name].encode()).hexdigest(), models, operator=operator)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, FakeServer]]:
    """A model that always runs, and one on demand whose server is stopped after 60 seconds without a request."""
    with FakeServer("on") as always, FakeServer("lazy") as asleep:
        lazy = replace(server(asleep.port), is_on_demand=True, idle_seconds=60)
        backends = [
            Backend("on", "On %d", "Q4", "model", (server(always.port),)),
            Backend("lazy", "Lazy", None, "embedding", (lazy,), key="of-the-servers"),
        ]
        clients = [
            client("op", operator=True),
            client("alice", operator=False),
            client("narrow", ("on",), operator=True),
        ]
        with running(tmp_path_factory.mktemp("operators"), backends, clients) as gateway:
            yield gateway, asleep


def statuses(gateway: Running) -> dict[str, str]:
    with gateway.client(KEYS["op"]) as asking:
        answer = asking.get("/models").json()
    return {model["id"]: model["status"]["value"] for model in answer["data"]}


@needs_haproxy
def test_model_on_demand_is_loaded_by_an_operator(served: tuple[Running, FakeServer]) -> None:
    gateway, asleep = served
    assert statuses(gateway) == {"on": "loaded", "lazy": "unloaded"}
    with gateway.client(KEYS["op"]) as asking:
        answer = asking.post("/models/load", json={"model": "lazy"})
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    # It has got a request that computes nothing, with the servers' own key.
    [(path, headers, _body)] = asleep.seen
    assert path == "/tokenize"
    assert headers["authorization"] == "Bearer of-the-servers"
    assert statuses(gateway) == {"on": "loaded", "lazy": "loaded"}


@needs_haproxy
def test_router_list_has_meta_and_others_get_the_usual_one(served: tuple[Running, FakeServer]) -> None:
    gateway, _asleep = served
    with gateway.client(KEYS["op"]) as asking:
        shown = asking.get("/models").json()["data"][0]
    assert shown["meta"] == {"display_name": "On %d", "tier": "Q4", "kind": "model"}
    with gateway.client(KEYS["alice"]) as asking:
        for path in ("/models", "/v1/models"):
            assert shown == {**asking.get(path).json()["data"][0], "status": {"value": "loaded"}}
            assert "status" not in asking.get(path).json()["data"][0]


@needs_haproxy
def test_model_without_a_server_is_in_the_list_of_the_router_alone(tmp_path: Path) -> None:
    with FakeServer("on") as always, FakeServer("away") as away, contextlib.ExitStack() as stack:
        backends = [
            Backend("on", "On", None, "model", (server(always.port),)),
            Backend("away", "Away", None, "model", (server(away.port),)),
        ]
        gateway = stack.enter_context(running(tmp_path, backends, [client("op", operator=True)]))
        gateway.admin.do(f"set server away/s_{away.port} state maint")
        with gateway.client(KEYS["op"]) as asking:
            found = {path: asking.get(path).json()["data"] for path in ("/models", "/v1/models")}
    assert {path: {one["id"]: one["status"]["value"] for one in listed} for path, listed in found.items()} == {
        "/models": {"on": "loaded", "away": "unloaded"},
        "/v1/models": {"on": "loaded"},
    }


@needs_haproxy
def test_list_without_statistics_is_an_error(served: tuple[Running, FakeServer]) -> None:
    """A console that got an empty list would take all models for removed."""
    gateway, _asleep = served
    socket = gateway.folder / "admin.sock"
    socket.rename(gateway.folder / "away.sock")
    try:
        with gateway.client(KEYS["op"]) as asking:
            found = [asking.get(path) for path in ("/models", "/v1/models")]
    finally:
        (gateway.folder / "away.sock").rename(socket)
    for answer in found:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_busy")
        assert int(answer.headers["retry-after"]) > 0
    assert statuses(gateway)["on"] == "loaded"


@needs_haproxy
def test_gateway_without_models_has_an_empty_list(tmp_path: Path) -> None:
    with running(tmp_path, [], [client("op", operator=True)]) as gateway:
        assert statuses(gateway) == {}


@needs_haproxy
def test_unloading_names_what_does_it(served: tuple[Running, FakeServer]) -> None:
    gateway, _asleep = served
    with gateway.client(KEYS["op"]) as asking:
        answer = asking.post("/models/unload", json={"model": "on"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unload_not_supported")
    assert "stop.yml" in answer.json()["error"]["message"]


@needs_haproxy
@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
def test_other_clients_find_nothing_there(served: tuple[Running, FakeServer], path: str) -> None:
    gateway, asleep = served
    before = len(asleep.seen)
    with gateway.client(KEYS["alice"]) as asking:
        for answer in (asking.post(path, json={"model": "lazy"}), asking.get(path)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    with gateway.client(KEYS["narrow"]) as asking:
        refused = asking.post(path, json={"model": "lazy"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        assert asking.post(path, json={"model": "none"}).status_code == 404
        assert asking.get(path).status_code == 405
    assert len(asleep.seen) == before


def test_operator_is_true_or_false() -> None:
    [known] = parse_clients([{"name": "op", "key": KEYS["op"], "operator": True}])
    assert known.operator
    with pytest.raises(GatewayError, match=r"gateway_api_keys\[0\] \(op\).operator must be true or false, not 'yes'"):
        parse_clients([{"name": "op", "key": KEYS["op"], "operator": "yes"}])


@pytest.mark.parametrize(("idle_stop", "seconds"), [(900, 900), (None, 0)])
def test_gateways_know_after_which_time_a_server_is_stopped(idle_stop: int | None, seconds: int) -> None:
    entry = {"name": "m", "model_id": "m", "port": 8080, "argv": ["llama-server"], "host": "127.0.0.1"}
    host = host_entry({"servers": [{**entry, "on_demand": {"idle_stop": idle_stop}}]}, "192.0.2.1")
    assert host["servers"][0]["idle_seconds"] == seconds
    check_host(host, [])
    host["servers"][0]["idle_seconds"] = -1
    with pytest.raises(DocumentError, match="idle_seconds"):
        check_host(host, [])
