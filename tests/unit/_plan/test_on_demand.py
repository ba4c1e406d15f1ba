# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that their first request starts: the profile's keys, ports, memory and actions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.argv import flag_value
from ansible_collections.magi.llama.plugins.module_utils._core.processes import Listener, Memory, Process
from ansible_collections.magi.llama.plugins.module_utils._plan.gpu import Gpu
from ansible_collections.magi.llama.plugins.module_utils._plan.inputs import Host, PlanError, Settings
from ansible_collections.magi.llama.plugins.module_utils._plan.on_demand import inner_port
from ansible_collections.magi.llama.plugins.module_utils._plan.plan import make_plan
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import ProfileError, validate

GIB = 1024**3
PROGRAMS = {"python": "/usr/bin/python3", "proxy": "/usr/lib/systemd/systemd-socket-proxyd"}
SETTINGS = Settings(state_dir="/state", service_manager="systemd", host="0.0.0.0", on_demand_programs=PROGRAMS)
RUNTIME = {"path": "/usr/bin/llama-server", "identity": "abc", "installed": True, "flags": {}}
ON_DEMAND = {"on_demand": True}


def model(name: str) -> dict[str, Any]:
    path = f"/models/{name}.gguf"
    about = {"id": name, "display_name": name, "kind": "model", "tier": "Q4", "architecture": "llama", "mmproj": None}
    fingerprint = {"size": 1, "mtime_ns": 2, "inode": 3}
    return {**about, "path": path, "files": [path], "fingerprint": fingerprint, "memory": {"stub": True}}


@pytest.fixture(autouse=True)
def one_gib_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(shape: Any, settings: Any, *, gpus: int = 0, **_: Any) -> dict[str, Any]:
        vram = GIB if gpus else 0
        sizes = {"total_bytes": GIB, "ram_bytes": GIB - vram, "vram_bytes": vram, "gpu_fixed_bytes": 0}
        return {**sizes, "growth_bytes": 0, "slot_context": 4096}

    monkeypatch.setattr("ansible_collections.magi.llama.plugins.module_utils._plan.drafts.estimate", estimate)


def profile(*entries: Any, **more: Any) -> dict[str, Any]:
    return validate("test", "profiles/test.yml", {"enabled_models": list(entries), **more})


def lazy(name: str, **start: Any) -> dict[str, Any]:
    return {"model": name, "start": {**ON_DEMAND, **start}}


def plan(chosen: dict[str, Any], settings: Settings = SETTINGS, **host: Any) -> dict[str, Any]:
    registry = {"models": [model(name) for name in "abc"], "rejected": [], "companions": []}
    return make_plan(registry, chosen, RUNTIME, settings, Host(**{"memory": Memory(64 * GIB, 32 * GIB), **host}))


def server(made: dict[str, Any], name: str = "a") -> dict[str, Any]:
    return next(server for server in made["servers"] if server["name"] == name)


def listener(port: int, pid: int | None = 1) -> dict[int, Listener]:
    return {port: Listener(port, ("0.0.0.0",), pid, "/sbin/init", () if pid is None else (pid,), (0,))}


def asleep(made: dict[str, Any]) -> dict[str, Any]:
    """The host after a plan was carried out and before any request."""
    sockets = {one["name"]: one["port"] for one in made["servers"] if "on_demand" in one}
    held = {port: one for number in sockets.values() for port, one in listener(number).items()}
    return {"record": made["servers"], "sockets": sockets, "listeners": held}


# --- the profile -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (None, None),
        ({"on_demand": False}, None),
        ({"on_demand": True}, {"idle_stop": 900, "pinned": False}),
        ({"on_demand": True, "idle_stop": 60}, {"idle_stop": 60, "pinned": False}),
        ({"on_demand": True, "pinned": True}, {"idle_stop": None, "pinned": True}),
    ],
)
def test_start_of_an_entry_has_defaults(start: Any, expected: Any) -> None:
    entry = {"model": "a", **({} if start is None else {"start": start})}
    assert profile(entry)["enabled_models"][0]["on_demand"] == expected


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"on_demand": "later"}, "start.on_demand must be true or false, not 'later'"),
        ({"idle_stop": 60}, "start.idle_stop needs on_demand: true next to it"),
        ({"on_demand": True, "idle_stop": 0}, "start.idle_stop must be a whole number of seconds above 0"),
        ({"on_demand": True, "idle_stop": True}, "start.idle_stop must be a whole number"),
        ({"on_demand": True, "pinned": True, "idle_stop": 9}, "a pinned server is not stopped when idle"),
        ({"on_demnad": True}, 'unknown key "enabled_models[0].start.on_demnad": did you mean "on_demand"?'),
    ],
)
def test_start_of_an_entry_that_is_wrong_is_named_with_file_and_key(start: Any, says: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile({"model": "a", "start": start})
    assert says in str(caught.value)
    assert str(caught.value).startswith('profile "test" (profiles/test.yml): ')


# --- command line and record -----------------------------------------------------------------------------------------


def test_server_on_demand_listens_behind_its_port() -> None:
    made = plan(profile("a", lazy("b", idle_stop=60)))
    first, second = made["servers"]
    assert [flag_value(one["argv"], "--port") for one in (first, second)] == ["8080", "18081"]
    assert [flag_value(one["argv"], "--host") for one in (first, second)] == ["0.0.0.0", "127.0.0.1"]
    assert [(one["host"], one["port"]) for one in (first, second)] == [("0.0.0.0", 8080), ("0.0.0.0", 8081)]
    assert second["on_demand"] == {"idle_stop": 60, "pinned": False, "port": 18081, **PROGRAMS}
    assert "on_demand" not in first and "MAGI_LLAMA_PORT" not in first["env"]
    assert second["env"]["MAGI_LLAMA_PORT"] == "8081"
    assert made["on_demand"] == {"budget_bytes": None, "gpu_bytes": [], "overcommit": False}


def test_other_servers_and_plans_are_as_without_demand() -> None:
    alone, mixed = plan(profile("a")), plan(profile("a", lazy("b")))
    assert server(mixed) == server(alone)
    assert "on_demand" not in alone
    assert (
        server(plan(profile("a"), dataclasses.replace(SETTINGS, on_demand_programs={})))["revision"]
        == (server(alone)["revision"])
    )


def test_inner_port_is_never_out_of_range() -> None:
    assert (inner_port(8080), inner_port(60_000)) == (18_080, 50_000)


def test_supervisor_is_refused_with_file_and_key() -> None:
    refusal = "supervisor does not start servers on demand, which needs systemd to listen for their requests."
    settings = dataclasses.replace(SETTINGS, on_demand_programs={}, on_demand_refusal=refusal)
    with pytest.raises(PlanError) as caught:
        plan(profile("a", lazy("b")), settings)
    assert str(caught.value) == (
        f'profile "test" (profiles/test.yml), enabled_models[1].start.on_demand: {refusal} '
        "Remove it: the server then runs all the time."
    )


def test_port_range_that_reaches_the_inner_ports_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"enabled_models\[0\].start.on_demand: the port range 8080 to 18080 is too wide"
    ):
        plan(profile(lazy("a")), dataclasses.replace(SETTINGS, port_last=18_080))


def test_inner_port_that_another_process_holds_is_refused() -> None:
    held = {18080: Listener(18080, ("0.0.0.0",), 4242, "nginx")}
    with pytest.raises(PlanError, match=r"listens on port 18080, which is held by pid 4242 \(nginx\)"):
        plan(profile(lazy("a")), listeners=held)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_resident_servers_and_the_largest_on_demand() -> None:
    budget = {"memory_budget": "2GiB"}
    assert plan(profile("a", lazy("b"), lazy("c"), **budget))["memory"]["needed_bytes"] == 2 * GIB
    with pytest.raises(PlanError, match=r"the servers need 3\.0 GiB"):
        plan(profile("a", lazy("b", pinned=True), lazy("c"), **budget))
    made = plan(profile("a", lazy("b"), **budget))
    assert made["on_demand"]["budget_bytes"] == 2 * GIB


def test_each_server_on_demand_gets_the_gpu_that_resident_ones_leave() -> None:
    flags = {"n_gpu_layers": {"spelling": "--n-gpu-layers", "value": True, "auto": True}}
    gpu = Gpu(0, "H100", 4 * GIB, 4 * GIB, "nvidia", "CUDA0")
    registry = {"models": [model(name) for name in "abc"], "rejected": [], "companions": []}
    chosen = profile("a", lazy("b"), lazy("c"), parameters={"n_gpu_layers": "auto"})
    host = Host(Memory(64 * GIB, 32 * GIB), gpus=[gpu])
    made = make_plan(registry, chosen, {**RUNTIME, "flags": flags}, SETTINGS, host)
    # With all three at once there would be no room for the margin.
    assert [flag_value(one["argv"], "--n-gpu-layers") for one in made["servers"]] == ["all", "all", "all"]
    assert made["memory"]["gpu_bytes"] == [2 * GIB]
    assert made["on_demand"]["gpu_bytes"] == [3 * GIB]


# --- actions ---------------------------------------------------------------------------------------------------------


def test_server_that_sleeps_is_kept_with_its_port() -> None:
    chosen = profile("a", lazy("b"))
    again = server(plan(chosen, **asleep(plan(chosen))), "b")
    assert (again["action"], again["reason"], again["port"]) == ("keep", "sleeps until a request", 8081)


def test_server_that_sleeps_is_kept_where_another_user_asks() -> None:
    chosen = profile(lazy("a"))
    state = {**asleep(plan(chosen)), "listeners": listener(8080, None)}
    assert server(plan(chosen, **state))["action"] == "keep"


def test_server_that_sleeps_and_changes_gets_a_new_socket() -> None:
    before = asleep(plan(profile(lazy("a"))))
    changed = server(plan(profile({**lazy("a"), "port": 8090}), **before))
    assert (changed["action"], changed["port"]) == ("restart", 8090)
    assert "moves from 8080" in changed["reason"]
    resident = server(plan(profile("a"), **before))
    assert (resident["action"], resident["reason"], resident["port"]) == (
        "restart",
        "is no longer started on demand",
        8080,
    )


def test_longer_idle_time_restarts_nothing() -> None:
    before = asleep(plan(profile(lazy("a"))))
    again = server(plan(profile(lazy("a", idle_stop=60)), **before))
    assert (again["action"], again["on_demand"]["idle_stop"]) == ("keep", 60)


def process(one: dict[str, Any], pid: int = 100) -> Process:
    return Process(pid, 1, one["name"], tuple(one["argv"]), dict(one["env"]), 0, 0.0, 1.0, 0)


def test_server_that_runs_on_demand_keeps_the_port_of_its_socket() -> None:
    chosen = profile(lazy("a"))
    made = plan(chosen)
    state = {**asleep(made), "running": {"a": process(server(made))}}
    again = server(plan(chosen, **state))
    assert (again["action"], again["port"], again["reason"]) == ("keep", 8080, "runs as planned")
    # Also where the record is lost, and where nothing listens any more.
    assert server(plan(chosen, **{**state, "record": ()}))["port"] == 8080
    broken = server(plan(chosen, **{**state, "sockets": {}, "listeners": {}}))
    assert (broken["action"], broken["reason"]) == ("restart", "nothing listens for its requests")


def test_server_becomes_one_on_demand_at_its_port() -> None:
    made = plan(profile("a"))
    state = {"record": made["servers"], "running": {"a": process(server(made))}, "listeners": listener(8080, 100)}
    changed = server(plan(profile(lazy("a")), **state))
    assert (changed["action"], changed["port"]) == ("restart", 8080)
    assert "--port 8080 → 18080" in changed["reason"]


def test_socket_of_another_server_is_not_a_free_port() -> None:
    before = asleep(plan(profile(lazy("a"))))
    made = plan(profile("b", lazy("a")), **before)
    assert {one["name"]: one["port"] for one in made["servers"]} == {"b": 8081, "a": 8080}
