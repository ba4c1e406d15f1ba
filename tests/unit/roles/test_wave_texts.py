# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a step of a change without downtime says where it ends: each of its checks, by itself."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from support.runs import ROOT

from .test_results import Fleet

TASKS = {task["name"]: task for task in yaml.safe_load((ROOT / "roles/servers/tasks/wave.yml").read_text())}
SERVER = {"name": "a", "model_id": "m", "kind": "model", "listens": "0.0.0.0", "port": 8080, "slots": 1}
MEMBERS = {"members": {"address": "192.0.2.1", "servers": [SERVER]}, "api_keys": []}
WAVE = {"drain": ["a"], "ready": ["a"], "needs": ["m"], "actions": {}, "new": {}}


def answers(*serving: str) -> dict[str, Any]:
    """What two gateways have said: the second one as a gateway that is not set up."""
    first = {"item": ["end", "gw1"], "serving": [*serving]}
    return {"results": [{"item": ["begin", "gw1"]}, first, {"item": ["end", "gw2"], "how": "missing"}]}


def health(*failed: str) -> dict[str, Any]:
    return {"failed_servers": [*failed], "msg": "0 of 1 servers are ready"}


REACHED = {"__gateway_members": MEMBERS}
GATEWAY = {**REACHED, "servers_address": "192.0.2.1"}
# The name of a check, what is known, and what it says; nothing where it passes.
CASES: list[tuple[str, Mapping[str, Any], str]] = [
    (
        "Check that other hosts serve the models meanwhile",
        {"__servers_ready": {"elsewhere": ["n"]}},
        "No other host serves m any more, so the servers here are left as they are: see what became of those, and run it "
        "again.",
    ),
    ("Check that other hosts serve the models meanwhile", {"__servers_ready": {"elsewhere": ["m"]}}, ""),
    (
        "Check that the host was reached",
        {"__gateway_members": {"unreachable": True}},
        "The connection to the host was lost before its servers were drained.",
    ),
    ("Check that the host was reached", REACHED, ""),
    (
        "Check that no gateway sends requests to them",
        {**GATEWAY, "__gateway_answers": answers("h_8080")},
        "The gateways gw1 still send requests to a, which are to be drained: run gateway.yml, and then this again.",
    ),
    ("Check that no gateway sends requests to them", {**GATEWAY, "__gateway_answers": answers()}, ""),
    (
        "Check that all that takes the place of a server is ready",
        {"__servers_wave_health": health("a")},
        "0 of 1 servers are ready",
    ),
    # A new one, where a degraded run is allowed; without that the wait before fails.
    (
        "Check that all that takes the place of a server is ready",
        {"__servers_wave_health": health("a"), "__servers_wave": {**WAVE, "new": {"a": "m"}}},
        "",
    ),
    ("Check that all that takes the place of a server is ready", {"__servers_wave_health": health()}, ""),
    (
        "Check that the host was reached all the time",
        {**REACHED, "__servers_launched": {"unreachable": True}},
        "The connection to the host was lost while its servers were changed.",
    ),
    ("Check that the host was reached all the time", {**REACHED, "__servers_launched": {}}, ""),
    (
        "Check that every gateway sends requests to them",
        {**GATEWAY, "__gateway_answers": answers(), "__servers_wave_health": health()},
        "a did not pass the health check of the gateways gw1, or are left out there: see that these reach 192.0.2.1 at the "
        "servers' ports, and their warnings.",
    ),
    (
        "Check that every gateway sends requests to them",
        {**GATEWAY, "__gateway_answers": answers(), "__servers_wave_health": health("a")},
        "",
    ),
    (
        "Check that every gateway sends requests to them",
        {**GATEWAY, "__gateway_answers": answers("h_8080"), "__servers_wave_health": health()},
        "",
    ),
]


def test_every_check_of_a_step_says_what_is_wrong() -> None:
    checks = {name for name, task in TASKS.items() if "ansible.builtin.assert" in task}
    assert checks == {name for name, _known, _text in CASES}
    tasks = []
    for number, (name, known, _text) in enumerate(CASES):
        said = {"ansible.builtin.debug": {"msg": f"case {number}: {{{{ ansible_failed_result.msg }}}}<"}}
        tasks.append({"vars": {"__servers_wave": WAVE, **known}, "block": [TASKS[name]], "rescue": [said]})
    with tempfile.TemporaryDirectory(prefix="magi-") as folder:
        fleet = Fleet(Path(folder))
        fleet.add("h")
        own = Path(folder) / "own.yml"
        own.write_text(json.dumps([{"hosts": "h", "gather_facts": False, "tasks": tasks}]))
        output = fleet.run(str(own.with_suffix("")))
    found = {int(number): text for number, text in re.findall(r'"msg": "case (\d+): (.*)<"', output)}
    assert found == {number: text for number, (_name, _known, text) in enumerate(CASES) if text}


def test_new_server_may_fail_only_where_that_is_allowed() -> None:
    wait = TASKS["Wait until they are healthy"]["magi.llama.wait_for_health"]["allow_degraded"]
    assert wait == "{{ servers_allow_degraded | bool and __servers_wave.new | default({}) | length > 0 }}"
