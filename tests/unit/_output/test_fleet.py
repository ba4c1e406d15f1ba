# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of a run together: where their servers are reached, and the summary that ends site."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._output.fleet import (
    fleet_lines,
    located,
    planned_servers,
    url_of,
)

PLANNED: dict[str, Any] = {
    **{"name": "a", "model_id": "m", "display_name": "M", "tier": "Q4", "kind": "embedding", "port": 8080},
    **{"host": "0.0.0.0", "argv": ["llama-server", "--api-key-file", "/k"], "build": 11669, "action": "start"},
    "memory": {"slot_context": 4096, "vram_bytes": 5},
}


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("0.0.0.0", "http://10.0.0.1:8080"),
        ("::", "http://10.0.0.1:8080"),
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("fd00::1", "http://[fd00::1]:8080"),
        (None, None),
    ],
)
def test_url_is_where_clients_reach_the_server(bind: str | None, url: str | None) -> None:
    assert url_of({"bind_address": bind, "port": 8080}, "10.0.0.1") == url


def test_url_of_server_with_tls_is_https() -> None:
    assert url_of({"bind_address": "::", "port": 1, "has_tls": True}, "fd00::2") == "https://[fd00::2]:1"


def test_site_has_all_that_a_client_needs_of_each_server() -> None:
    plan = {"profile": "production", "servers": [PLANNED, {**PLANNED, "name": "b", "action": "stop"}]}
    health = {"servers": [{"name": "a", "is_ready": True, "state": "ready"}]}
    found = located({"servers": planned_servers(plan, health)}, "gpu1", "10.0.0.1")
    assert (found["host"], found["address"]) == ("gpu1", "10.0.0.1")
    assert found["servers"] == [
        {
            **{"name": "a", "model_id": "m", "display_name": "M", "tier": "Q4", "port": 8080, "kind": "embedding"},
            **{"bind_address": "0.0.0.0", "context_size": 4096, "needs_api_key": True, "has_tls": False},
            **{"profile": "production", "build": 11669, "is_ready": True, "state": "ready", "planned_vram_bytes": 5},
            **{"host": "gpu1", "address": "10.0.0.1", "url": "http://10.0.0.1:8080"},
        }
    ]


def test_host_without_servers_has_its_address() -> None:
    assert located({}, "gpu1", "10.0.0.1") == {"host": "gpu1", "address": "10.0.0.1"}


def test_fleet_has_a_line_for_each_host() -> None:
    hosts = {
        "gpu1": {"total_servers": 3, "ready_servers": 3, "actions": {"start": 2, "stop": 1}},
        "gpu2": {"total_servers": 2, "ready_servers": 1, "actions": {}, "error": "b failed\nmore"},
        "gpu3": {"error": "x" * 300},
        "gpu4": {},
    }
    states = {"gpu1": "ok", "gpu2": "failed", "gpu3": "unreachable", "gpu4": "not begun"}
    assert fleet_lines(hosts, states) == [
        "fleet  4 hosts: 1 ok, 1 failed, 1 unreachable, 1 not begun",
        "HOST  READY   STATE        CHANGES",
        "gpu1  3 of 3  ok           2 started, 1 stopped",
        "gpu2  1 of 2  failed       -                     b failed",
        f"gpu3  -       unreachable  -                     {'x' * 100}…",
        "gpu4  -       not begun    -",
    ]
