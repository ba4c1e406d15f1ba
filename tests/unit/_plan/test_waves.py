# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The waves of a change without downtime: what is drained when, and what must be ready before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Listener, Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.waves import changed_in_waves

GIB = 1024**3
PROFILE = {"name": "p", "source": "p.yml"}
RESERVE = GIB


def server(
    name: str, action: str = "restart", port: int = 8080, gib: int = 4, model: str | None = None
) -> dict[str, Any]:
    """A server of a plan that needs gib GiB of RAM."""
    argv = ["/usr/bin/llama-server", "--alias", model or name, "--port", str(port), "--ctx-size", "2"]
    return {
        "name": name,
        "model_id": model or name,
        "port": port,
        "argv": argv,
        "env": {"MAGI_LLAMA_SERVER": name, "MAGI_LLAMA_REVISION": "new"},
        "revision": "new",
        "memory": {"ram_bytes": gib * GIB, "vram_bytes": 0},
        "action": action,
        "reason": "r",
    }


def process(planned: Mapping[str, Any], revision: str = "old") -> Process:
    env = {**planned["env"], "MAGI_LLAMA_REVISION": revision}
    need = planned["memory"]["ram_bytes"]
    return Process(100 + planned["port"], 1, planned["name"], tuple(planned["argv"]), env, 0, 0.0, 1.0, need)


def changed(
    *planned: dict[str, Any],
    total: int = 64,
    before: list[dict[str, Any]] | None = None,
    elsewhere: tuple[str, ...] = (),
    idle: tuple[str, ...] = (),
    ports: tuple[int, int] = (8080, 8089),
    allow: bool = False,
    listeners: dict[int, Listener] | None = None,
    seen: dict[str, int] | None = None,
    overcommit: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The servers and waves on a host with total GiB, where all but the new ones run and serve."""
    record = [one for one in planned if one["action"] != "start"] if before is None else before
    running = {one["name"]: process(one, one.get("revision", "old")) for one in record}
    held = sum(one.rss_bytes for one in running.values())
    host = Host(
        memory=Memory(total * GIB, total * GIB - held),
        record=record,
        running=running,
        listeners=listeners or {},
        ready_seconds={"a": 3.0},
    )
    settings = Settings(
        "/state",
        "systemd",
        *ports,
        without_downtime=True,
        served_here=seen or Counter(one["model_id"] for one in record if one["model_id"] not in idle),
        memory_overcommit=overcommit,
        served_elsewhere=frozenset(elsewhere),
        allow_downtime=allow,
    )
    return changed_in_waves(list(planned), PROFILE, settings, host)


def steps(change: Mapping[str, Any]) -> list[tuple[list[str], dict[str, str]]]:
    """What each wave drains and does."""
    return [(wave["drain"], wave["actions"]) for wave in change["waves"]]


def test_a_stand_in_serves_while_a_server_is_restarted() -> None:
    servers, change = changed(server("a"))
    assert [one.get("change") for one in servers] == ["surge", None]
    stand_in = servers[1]
    assert (stand_in["name"], stand_in["port"], stand_in["action"]) == ("a-surge", 8089, "start")
    assert stand_in["stands_in_for"] == "a"
    assert stand_in["argv"][3:5] == ["--port", "8089"]
    assert stand_in["env"]["MAGI_LLAMA_SERVER"] == "a-surge"
    assert stand_in["env"]["MAGI_LLAMA_REVISION"] == stand_in["revision"] != "new"
    assert steps(change) == [
        ([], {"a-surge": "start"}),
        (["a"], {"a": "restart"}),
        (["a-surge"], {"a-surge": "stop"}),
    ]
    assert [wave["ready"] for wave in change["waves"]] == [["a-surge"], ["a"], []]
    assert change["away"] == {}
    assert change["peak"] == {"ram_bytes": 8 * GIB, "vram_bytes": 0, "gpu_bytes": []}


def test_without_a_gateway_nothing_changes() -> None:
    planned = [server("a")]
    settings, host = Settings("/state", "systemd"), Host(memory=Memory(GIB, GIB))
    assert changed_in_waves(planned, PROFILE, settings, host) == (planned, {})


def test_a_profile_switch_starts_the_new_servers_before_it_drains_the_old_ones() -> None:
    _servers, change = changed(server("b", "start", 8081), server("a", "stop", 8080))
    assert steps(change) == [([], {"b": "start"}), (["a"], {"a": "stop"})]
    assert change["waves"][0]["ready"] == ["b"]


def test_a_new_server_that_has_no_room_waits_for_those_that_leave() -> None:
    _servers, change = changed(server("b", "start", 8081, gib=5), server("a", "stop", 8080, gib=4), total=8)
    assert steps(change) == [(["a"], {"a": "stop", "b": "start"})]
    assert change["peak"]["ram_bytes"] == 5 * GIB


def test_a_new_server_with_the_port_of_one_that_leaves_waits_for_it() -> None:
    _servers, change = changed(server("b", "start", 8080), server("a", "stop", 8080))
    assert steps(change) == [(["a"], {"a": "stop", "b": "start"})]


def test_servers_that_fit_one_by_one_only_are_changed_one_by_one() -> None:
    _servers, change = changed(server("a", port=8080), server("b", port=8081), total=14)
    assert steps(change) == [
        ([], {"a-surge": "start"}),
        (["a"], {"a": "restart"}),
        (["a-surge"], {"a-surge": "stop"}),
        ([], {"b-surge": "start"}),
        (["b"], {"b": "restart"}),
        (["b-surge"], {"b-surge": "stop"}),
    ]
    assert change["peak"]["ram_bytes"] == 12 * GIB


def test_a_server_is_swapped_while_another_host_serves_its_model() -> None:
    servers, change = changed(server("a"), total=6, elsewhere=("a",))
    assert servers[0]["change"] == "swap"
    assert steps(change) == [(["a"], {"a": "restart"})]
    assert change["waves"][0]["needs"] == ["a"]


def test_instances_are_swapped_one_after_another() -> None:
    servers, change = changed(server("a", port=8080), server("a-2", port=8081, model="a"), total=10)
    assert [one["change"] for one in servers] == ["swap", "swap"]
    assert steps(change) == [(["a"], {"a": "restart"}), (["a-2"], {"a-2": "restart"})]
    assert [wave["needs"] for wave in change["waves"]] == [[], []]


def test_a_model_that_would_be_away_is_refused_with_its_seconds() -> None:
    with pytest.raises(PlanError) as error:
        changed(server("a"), total=6)
    assert "this model is away: a for about 3 s" in str(error.value)
    assert "allow_downtime=true" in str(error.value)


def test_a_model_may_be_away_where_that_is_accepted() -> None:
    servers, change = changed(server("a"), total=6, allow=True)
    assert servers[0]["change"] == "away"
    assert steps(change) == [(["a"], {"a": "restart"})]
    assert change["waves"][0]["away"] == {"a": 3.0}
    assert change["away"] == {"a": 3.0}


def test_seconds_are_estimated_for_a_server_that_was_never_seen_to_start() -> None:
    _servers, change = changed(server("b", gib=4), total=6, allow=True)
    assert change["away"] == {"b": pytest.approx(4 * GIB / 500e6 + 2, abs=0.1)}


def test_without_a_free_port_there_is_no_stand_in() -> None:
    listener = Listener(8081, ("127.0.0.1",), 1, "nginx")
    servers, _change = changed(server("a"), ports=(8080, 8081), listeners={8081: listener}, elsewhere=("a",))
    assert servers[0]["change"] == "swap"


def test_a_server_that_serves_nobody_is_restarted_at_once() -> None:
    servers, change = changed(server("a"), total=6, idle=("a",))
    assert "change" not in servers[0]
    assert steps(change) == [(["a"], {"a": "restart"})]
    assert change["away"] == {}


def test_a_server_on_demand_has_no_stand_in() -> None:
    servers, change = changed({**server("a"), "on_demand": {"idle_stop": 900}})
    assert "change" not in servers[0]
    assert steps(change) == [(["a"], {"a": "restart"})]


def test_a_stand_in_of_an_interrupted_run_serves_again() -> None:
    first, _change = changed(server("a"))
    left = first[1]
    stopped = {**left, "action": "stop", "reason": "not enabled"}
    old = {**server("a"), "revision": "old"}
    servers, change = changed(server("a"), stopped, before=[old, left])
    assert [(one["name"], one["action"], one["port"]) for one in servers] == [
        ("a", "restart", 8080),
        ("a-surge", "keep", 8089),
    ]
    assert steps(change) == [([], {}), (["a"], {"a": "restart"}), (["a-surge"], {"a-surge": "stop"})]
    assert change["waves"][0]["ready"] == ["a-surge"]


def test_a_stand_in_that_is_left_over_is_drained_and_stopped() -> None:
    stand_in = changed(server("a"))[0][1]
    stopped = {**stand_in, "action": "stop", "reason": "not enabled"}
    _servers, change = changed(server("a", "keep"), stopped, before=[server("a", "keep"), stand_in])
    assert steps(change) == [(["a-surge"], {"a-surge": "stop"})]


def test_a_model_that_leaves_makes_room_for_the_stand_in_of_another() -> None:
    servers, change = changed(server("a", gib=4, port=8080), server("b", "stop", port=8081, gib=4), total=10)
    assert servers[0]["change"] == "surge"
    assert steps(change) == [
        (["b"], {"b": "stop"}),
        ([], {"a-surge": "start"}),
        (["a"], {"a": "restart"}),
        (["a-surge"], {"a-surge": "stop"}),
    ]


def test_a_server_that_grows_has_a_stand_in_only_where_both_fit() -> None:
    old = {**server("a", gib=10), "revision": "old"}
    with pytest.raises(PlanError):
        changed(server("a", gib=30), total=45, before=[old])
    servers, change = changed(server("a", gib=30), total=80, before=[old])
    assert servers[0]["change"] == "surge"
    assert change["peak"]["ram_bytes"] == 60 * GIB


def test_servers_that_exchange_their_ports_are_not_changed_one_by_one() -> None:
    before = [{**server("a", port=8080), "revision": "old"}, {**server("b", port=8081), "revision": "old"}]
    _servers, change = changed(server("a", port=8081), server("b", port=8080), before=before, allow=True)
    assert steps(change) == [(["a", "b"], {"a": "restart", "b": "restart"})]


def test_an_instance_that_the_gateways_do_not_see_is_no_reason_to_drain_the_other() -> None:
    two = (server("a", port=8080), server("a-2", port=8081, model="a"))
    record = [dict(one) for one in two]
    with pytest.raises(PlanError):
        changed(*two, total=10, before=record, seen={"a": 1})


def test_a_stand_in_of_another_launch_config_is_replaced_before_it_is_stopped() -> None:
    left = {**changed(server("a"))[0][1], "revision": "other"}
    stopped = {**left, "action": "stop", "reason": "not enabled"}
    old = {**server("a"), "revision": "old"}
    servers, change = changed(server("a"), stopped, before=[old, left])
    assert [(one["name"], one["action"]) for one in servers] == [
        ("a", "restart"),
        ("a-surge", "stop"),
        ("a-xsurge", "start"),
    ]
    assert steps(change) == [
        ([], {"a-xsurge": "start"}),
        (["a", "a-surge"], {"a-surge": "stop", "a": "restart"}),
        (["a-xsurge"], {"a-xsurge": "stop"}),
    ]


def test_memory_overcommit_is_for_servers_that_stay() -> None:
    with pytest.raises(PlanError):
        changed(server("a", gib=30), total=45, overcommit=True)


def test_waves_say_what_comes_to_the_host_and_what_leaves_it() -> None:
    """Other hosts of the run may wait for that. Stand-ins, and further instances, are neither."""
    _planned, change = changed(
        server("a", "start", 8081),
        server("b", "stop", 8082),
        server("c-2", "stop", 8083, model="c"),
        server("c", "restart", 8084, model="c"),
        seen={"b": 1, "c": 2},
    )
    moves = [(wave.get("new"), wave.get("drops")) for wave in change["waves"]]
    assert moves == [({"a": "a"}, None), (None, ["b"]), (None, None)]
