# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of the API whose parts come from hosts: they can be read, though a host may send anything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from magi_llama_console.api.v1 import servers
from magi_llama_console.api.v1.plans import HostPlan
from magi_llama_console.fleet import plans
from magi_llama_console.fleet.facts import Host, Server
from magi_llama_console.store.sqlite import SqliteStore

SERVER = Server("a", "x", "x", 8080, "ready", True, tokens_per_second=float("nan"))
PLANNED = {"name": "x", "model_id": "x", "action": "start", "reason": "new", "port": 8080}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_number_that_is_not_finite_is_null() -> None:
    async def refresh() -> None:
        """The inventory is as it is."""

    watch = SimpleNamespace(refresh=refresh, inventory_error="", hosts=lambda: [Host("a", {"x": SERVER})])
    console: Any = SimpleNamespace(fleet=watch)
    user: Any = None
    response: Any = asyncio.run(servers.list_servers(console, user))
    assert json.loads(response.body, parse_constant=refuse)["servers"][0]["tokens_per_second"] is None


def test_lines_about_a_server_are_those_of_its_hosts_newest_events(tmp_path: Path) -> None:
    def event(kind: str, data: Any, host: str = "a") -> dict[str, Any]:
        return {"type": kind, "run": "r", "at": "2026-11-27T18:00:00.000Z", "host": host, "data": data}

    store = SqliteStore(tmp_path / "console.db")
    console: Any = SimpleNamespace(store=store)
    events = [
        event("line", {"text": "x is old"}),
        *(event("line", {"text": "x waits"}) for _ in range(servers.EVENTS - 7)),
        event("plan", {"plan": {"servers": ["x"]}}),
        event("line", {"text": "x elsewhere"}, host="b"),
        event("line", {"text": ["x"]}),
        event("warning", {"text": "x has little memory"}),
        event("server_failed", {"server": "x", "reason": "exit 1", "fix": 7}),
        event("task_failed", ["x"]),
        event("line", None),
        event("task_failed", {"msg": "x failed\n\nlast"}),
    ]
    asyncio.run(store.add_events("j", events))
    found = [line.partition("  ")[2] for line in asyncio.run(servers.lines_about(console, SERVER))]
    asyncio.run(store.close())
    assert found[-5:] == ["x has little memory", "server failed", "exit 1", "x failed", "last"]
    assert len(found) == servers.MAX_LINES and "x elsewhere" not in found


def test_plan_with_odd_values_of_one_host_is_shown_with_the_others() -> None:
    memory = {"host_ram_bytes": "abc", "gpus": [1, {"name": 2, "free_bytes": "x"}], "now": 3, "after": {"gpu_bytes": 4}}
    document = {
        "hosts": {
            "a": {"servers": [{**PLANNED, "argv_diff": 3, "downtime_seconds": "1", "memory": 4}], "memory": memory},
            "b": {"servers": [{"name": "y"}], "memory": None, "warnings": 5},
            "c": 7,
            "d": {"servers": [PLANNED]},
        }
    }
    found = {name: HostPlan(**part) for name, part in plans.described(document).items()}
    assert {name: one.summary for name, one in found.items()} == {
        **dict.fromkeys("ad", "1 to start"),
        **dict.fromkeys("bc", "no servers"),
    }
    assert found["a"].memory.ram.total is None and found["a"].memory.gpus[0].free is None
    assert found["b"].error == "The host's plan cannot be used: a planned server has no usable model_id."
