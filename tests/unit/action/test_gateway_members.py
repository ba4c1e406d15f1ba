# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host reports of its servers is held to the inventory before it reaches a gateway."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from .conftest import Harness

ARGUMENTS = {
    "state_dir": "/s",
    "address": "192.0.2.1",
    "host": "192.0.2.1",
    "port_range_start": 8080,
    "port_range_end": 8089,
}


def server(name: str, port: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model_id": name,
        "display_name": name,
        "tier": "Q4",
        "kind": "model",
        "listens": "192.0.2.1",
        "port": port,
        "slots": 2,
        "patience": 4,
        **more,
    }


def answer(*servers: dict[str, Any], keys: tuple[str, ...] = ("key",)) -> dict[str, Any]:
    return {
        "changed": False,
        "members": {"address": "198.51.100.9", "servers": [*servers]},
        "api_keys": [*keys],
        "left_out": [],
        "running": [one["name"] for one in servers if one["name"] != "stopped"],
    }


def test_servers_of_the_inventory_are_members(run_action: Harness) -> None:
    found = answer(server("a", 8080), server("b", 9000), server("c", 8081, listens="203.0.113.5"))
    result = run_action("gateway_members", ARGUMENTS, answers=[found]).result
    assert result["members"] == {"address": "192.0.2.1", "servers": [server("a", 8080)]}
    assert result["left_out"] == ["b", "c"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (answer(server("a", 8080), server("b", 8080)), "No gateway can use .*two servers of the host have one port"),
        (answer(server("a", 8080, slots=0)), "No gateway can use .*slots"),
        (answer(server("a", 8080), keys=("a\nkey",)), "characters that no header can have"),
    ],
)
def test_what_no_gateway_takes_fails_the_host(run_action: Harness, found: dict[str, Any], message: str) -> None:
    """A warning alone would let the run continue and stop servers that gateways still send requests to."""
    with pytest.raises(AnsibleActionFail, match=message):
        run_action("gateway_members", ARGUMENTS, answers=[found])


@pytest.mark.parametrize(
    ("lost", "leaving"),
    [
        (server("a", 9000), ["b"]),
        (server("a", 8081, listens="203.0.113.5"), []),
    ],
    ids=["port", "address"],
)
def test_server_that_serves_is_not_left_out_in_a_change_without_downtime(
    run_action: Harness, lost: dict[str, Any], leaving: list[str]
) -> None:
    """Gateways would take it out at the first step, before another one takes its place."""
    arguments = {**ARGUMENTS, "leaving": leaving}
    found = answer(lost, server("b", 9001, draining=not leaving), server("stopped", 9002))
    with pytest.raises(
        AnsibleActionFail, match=r"no more requests to a before .* widen the range or name both addresses"
    ):
        run_action("gateway_members", arguments, answers=[found])
    left = run_action("gateway_members", {**arguments, "leaving": ["a", "b"]}, answers=[found]).result["left_out"]
    assert left == run_action("gateway_members", ARGUMENTS, answers=[found]).result["left_out"] == ["a", "b", "stopped"]
