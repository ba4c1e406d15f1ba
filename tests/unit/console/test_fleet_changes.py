# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stream says of hosts and servers that the console sees change between runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from magi_llama_console.api.fleet_changes import FleetChanges
from magi_llama_console.fleet.facts import Fleet, Host, Server

READY = Server("gpu1", "qwen3", "qwen3", 8080, "ready", True)
OTHER = Server("gpu1", "gemma", "gemma", 8081, "ready", True)
HOST = Host("gpu1", {"qwen3": READY, "gemma": OTHER}, is_known=True, as_of="2026-11-27T18:00:00.000Z", source="sweep")


class Store:
    async def jobs(self, states: Any, limit: int) -> list[Any]:
        return []


def console_of(fleet: Fleet) -> Any:
    hosts = {"gpu1": SimpleNamespace(address="10.0.0.1", groups=("models",))}
    watch = SimpleNamespace(fleet=fleet, inventory=SimpleNamespace(hosts=hosts), stale_since=lambda host: None)
    return SimpleNamespace(fleet=watch, store=Store())


def test_only_what_has_changed_is_said() -> None:
    console = console_of(Fleet({"gpu1": HOST}))
    changes = FleetChanges(console)
    assert asyncio.run(changes.take()) == []
    failed = replace(READY, state="failed", is_ready=False, reason="out of memory")
    console.fleet.fleet = Fleet({"gpu1": replace(HOST, servers={"qwen3": failed, "gemma": OTHER})})
    server, host = asyncio.run(changes.take())
    assert (server.kind, server.document["name"], server.document["state"]) == ("server", "qwen3", "failed")
    assert (host.kind, host.document["state"], host.document["servers_ready"]) == ("host", "degraded", 1)
    assert asyncio.run(changes.take()) == []


def test_hosts_that_left_the_inventory_are_left_out() -> None:
    console = console_of(Fleet())
    changes = FleetChanges(console)
    console.fleet.fleet = Fleet({"gone": replace(HOST, name="gone")})
    assert asyncio.run(changes.take()) == []
