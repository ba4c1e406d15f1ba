# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folding events and documents: what is deployed, what is live, and what drifts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from magi_llama_console.fleet.facts import Fleet, Host, from_plain, to_plain
from magi_llama_console.fleet.view import MAX_RUNS, fold, fold_document, forget_run, with_liveness

RECAP = {"a": {"ok": 5, "changed": 0, "failed": 0, "unreachable": 0}}


def event(
    kind: str, data: Mapping[str, Any] | None = None, *, second: int = 0, run: str = "r1", **more: Any
) -> dict[str, Any]:
    at = f"2026-11-27T18:00:{second:02}.000Z"
    return {"schema_version": 1, "at": at, "run": run, "seq": second, "type": kind, "data": dict(data or {}), **more}


def planned(name: str, action: str = "start", port: int = 8080, reason: str = "new") -> dict[str, Any]:
    return {
        "name": name,
        "model_id": name,
        "display_name": name.title(),
        "tier": "Q4",
        "kind": "model",
        "host": "0.0.0.0",
        "port": port,
        "argv": ["/bin/llama-server", "--port", str(port), "--parallel", "4"],
        "env": {"SECRET_TOKEN": "do-not-keep", "MAGI_LLAMA_SERVER": name},
        "revision": "abc",
        "memory": {"total_bytes": 300, "ram_bytes": 200, "vram_bytes": 100, "slot_context": 1024},
        "action": action,
        "reason": reason,
    }


def plan(*servers: Mapping[str, Any], profile: str = "production") -> dict[str, Any]:
    memory = {
        "host_ram_bytes": 1000,
        "host_available_bytes": 600,
        "host_vram_bytes": 500,
        "usable_vram_bytes": 400,
        "gpus": [{"name": "CUDA0", "total_bytes": 500, "free_bytes": 400}],
        "gpu_bytes": [100],
    }
    return {"profile": profile, "servers": list(servers), "memory": memory}


def one_status(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model_id": name,
        "display_name": None,
        "port": 8080,
        "pid": 7,
        "is_ready": state in ("ready", "sleeping"),
        "tier": "Q4",
        "state": state,
        "uptime_seconds": 3,
        "rss_bytes": 50,
        "restarts": 0,
        "profile": "production",
        **more,
    }


def status(*servers: Mapping[str, Any]) -> dict[str, Any]:
    return {"total_servers": len(servers), "ready_servers": 0, "servers": list(servers)}


def run(
    playbook: str,
    *events: Mapping[str, Any],
    check: bool = False,
    recap: Any = None,
    name: str = "r1",
    second: int = 0,
    **started: Any,
) -> list[dict[str, Any]]:
    """The events of a whole run."""
    return [
        event(
            "run_started",
            {"playbook": playbook, "profile": None, "check": check, **started},
            run=name,
            check=check,
            second=second,
        ),
        *({**one, "run": name, "check": check} for one in events),
        event("run_ended", {"rc": 0, "hosts": RECAP if recap is None else recap}, run=name, check=check, second=59),
    ]


def folded(*runs: Sequence[Mapping[str, Any]], fleet: Fleet | None = None) -> Fleet:
    return reduce(fold, [one for events in runs for one in events], fleet or Fleet())


def on_a(kind: str, data: Mapping[str, Any], second: int = 1) -> dict[str, Any]:
    return event(kind, data, host="a", second=second)


DEPLOY = run(
    "site.yml", on_a("plan", {"plan": plan(planned("x"))}), on_a("server_ready", {"server": "x", "port": 8080}, 2)
)
STATUS = run("status.yml", on_a("status", {"status": status(one_status("x", bind_address="0.0.0.0"))}, 10), name="s1")


def test_finished_run_says_what_is_deployed() -> None:
    host = folded(DEPLOY).hosts["a"]
    server = host.servers["x"]
    assert (host.state, host.profile, host.source, host.as_of) == (
        "ok",
        "production",
        "events",
        "2026-11-27T18:00:02.000Z",
    )
    assert (server.state, server.port, server.slots, server.planned_bytes, server.revision) == (
        "ready",
        8080,
        4,
        300,
        "abc",
    )
    assert (host.ram.total_bytes, host.ram.free_bytes, host.ram.planned_bytes) == (1000, 600, 200)
    assert [(gpu.memory.total_bytes, gpu.memory.free_bytes, gpu.memory.planned_bytes) for gpu in host.gpus] == [
        (500, 400, 100)
    ]


def test_values_of_environment_are_not_kept() -> None:
    fleet = folded(DEPLOY)
    assert fleet.hosts["a"].servers["x"].environment_names == ("MAGI_LLAMA_SERVER", "SECRET_TOKEN")
    assert "do-not-keep" not in json.dumps(to_plain(fleet))


@pytest.mark.parametrize(
    "events",
    [
        run("site.yml", on_a("plan", {"plan": plan(planned("x"))}), on_a("server_ready", {"server": "x"}), check=True),
        run("plan.yml", on_a("plan", {"plan": plan(planned("x"))})),
        run("magi.llama.plan", on_a("plan", {"plan": plan(planned("x"))})),
        run("status.yml", on_a("status", {"status": status(one_status("x"))}), check=True),
        DEPLOY[:-1],
        STATUS[:-1],
        [*DEPLOY[:-1], event("run_ended", {"rc": 99, "hosts": {}}, run="r1", second=59)],
    ],
    ids=[
        "checked site",
        "plan",
        "plan by name",
        "checked status",
        "unfinished site",
        "unfinished status",
        "interrupted",
    ],
)
def test_preview_and_unfinished_run_say_nothing_of_what_is_deployed(events: list[dict[str, Any]]) -> None:
    host = folded(events).hosts.get("a", Host("a"))
    assert (dict(host.servers), host.is_known, host.state) == ({}, False, "unknown")


def test_preview_says_what_memory_is_free_but_not_what_is_planned() -> None:
    ram = folded(run("plan.yml", on_a("plan", {"plan": plan(planned("x"))}))).hosts["a"].ram
    assert (ram.total_bytes, ram.free_bytes, ram.planned_bytes) == (1000, 600, None)


def test_server_events_of_a_known_server_count_before_the_run_has_ended() -> None:
    stop = [
        event("run_started", {"playbook": "stop.yml"}, run="r2"),
        event("server_stopped", {"server": "x", "reason": None}, run="r2", host="a", second=20),
    ]
    fleet = folded(DEPLOY, stop)
    assert (fleet.hosts["a"].servers["x"].state, fleet.hosts["a"].state) == ("stopped", "failed")


def test_server_events_of_a_preview_never_count() -> None:
    stop = run("stop.yml", on_a("server_stopped", {"server": "x"}), check=True, name="r2")
    assert folded(DEPLOY, stop).hosts["a"].servers["x"].state == "ready"


def test_failed_server_keeps_its_reason_and_fix() -> None:
    failed = on_a("server_failed", {"server": "x", "port": 8080, "reason": "exit 1", "fix": "Lower ctx_size."}, 3)
    recap = {"a": {"ok": 5, "failed": 1, "unreachable": 0}}
    fleet = folded(
        run(
            "site.yml",
            on_a("plan", {"plan": plan(planned("x"), planned("y", port=8081))}),
            failed,
            on_a("server_ready", {"server": "y"}),
            recap=recap,
        )
    )
    host = fleet.hosts["a"]
    assert host.state == "degraded"
    assert (host.servers["x"].reason, host.servers["x"].fix, host.servers["y"].reason) == (
        "exit 1",
        "Lower ctx_size.",
        None,
    )


def test_plan_of_a_run_that_failed_before_it_changed_the_host_is_not_deployed() -> None:
    recap = {"a": {"ok": 2, "failed": 1, "unreachable": 0}}
    other = run("site.yml", on_a("plan", {"plan": plan(planned("z"))}), recap=recap, name="r2")
    assert list(folded(DEPLOY, other).hosts["a"].servers) == ["x"]


def test_servers_that_the_plan_stops_are_gone_and_stand_ins_never_there() -> None:
    second = plan(planned("x", "stop"), planned("y", port=8081), {**planned("y-surge"), "stands_in_for": "y"})
    assert list(folded(DEPLOY, run("site.yml", on_a("plan", {"plan": second}), name="r2")).hosts["a"].servers) == ["y"]


def test_status_replaces_the_servers_and_keeps_what_only_the_plan_knows() -> None:
    server = folded(DEPLOY, STATUS).hosts["a"].servers["x"]
    assert (server.pid, server.rss_bytes, server.revision, server.slots) == (7, 50, "abc", 4)
    moved = run("status.yml", on_a("status", {"status": status(one_status("x", port=9000))}, 10), name="s1")
    assert folded(DEPLOY, moved).hosts["a"].servers["x"].argv is None


def test_status_from_before_a_change_does_not_undo_it() -> None:
    late = run("status.yml", on_a("status", {"status": status(one_status("x", "stopped"))}, 1), name="s1")
    assert folded(DEPLOY, late).hosts["a"].servers["x"].state == "ready"


def test_server_on_demand_is_known_as_such_while_it_runs() -> None:
    seen = run("status.yml", on_a("status", {"status": status(one_status("x", on_demand=True))}, 10), name="s1")
    assert folded(seen).hosts["a"].servers["x"].is_on_demand


def test_unreachable_counts_at_once_even_in_a_preview_and_ends_with_the_next_contact() -> None:
    lost = [
        event("run_started", {"playbook": "plan.yml"}, run="r2"),
        event("unreachable", {"msg": "ssh"}, run="r2", host="a"),
    ]
    fleet = folded(DEPLOY, lost)
    assert (fleet.hosts["a"].state, list(fleet.hosts["a"].servers)) == ("unreachable", ["x"])
    assert folded(STATUS, fleet=fleet).hosts["a"].state == "ok"


def test_drift_has_the_time_since_when_and_ends_with_a_deployment() -> None:
    def preview(second: int, *servers: dict[str, Any]) -> list[dict[str, Any]]:
        return run("plan.yml", on_a("plan", {"plan": plan(*servers)}, second), name=f"p{second}")

    first = folded(DEPLOY, preview(20, planned("x", "restart", reason="--ctx-size 1 → 2")))
    assert (first.hosts["a"].drift, first.hosts["a"].drift_since) == (
        {"x": "restart: --ctx-size 1 → 2"},
        "2026-11-27T18:00:20.000Z",
    )
    later = folded(preview(30, planned("x", "restart"), planned("y")), fleet=first)
    assert later.hosts["a"].drift_since == "2026-11-27T18:00:20.000Z"
    again = folded(run("site.yml", *DEPLOY[1:-1], name="r3"), fleet=later).hosts["a"]
    assert (again.drift, again.drift_since) == ({}, None)


def test_preview_of_another_profile_is_not_drift() -> None:
    other = run("plan.yml", on_a("plan", {"plan": plan(planned("z"), profile="fast")}, 20), name="p", profile="fast")
    assert folded(DEPLOY, other).hosts["a"].drift == {}


def test_pending_restart_of_a_status_is_drift() -> None:
    pending = run("status.yml", on_a("status", {"status": status(one_status("x", restart_pending=True))}, 10), name="s")
    assert list(folded(pending).hosts["a"].drift or {}) == ["x"]


def test_lost_run_is_forgotten_and_many_do_not_grow() -> None:
    assert forget_run(folded(DEPLOY[:-1]), "r1").runs == {}
    begun = [event("run_started", {"playbook": "site.yml"}, run=f"r{number}") for number in range(MAX_RUNS + 5)]
    assert len(folded(begun).runs) == MAX_RUNS


def test_documents_fold_as_events_do() -> None:
    document = {"kind": "status", "hosts": {"a": status(one_status("x")), "b": {"task": None, "error": "ssh"}}}
    fleet = fold_document(Fleet(), document, "2026-11-27T18:00:00.000Z")
    assert {name: host.state for name, host in fleet.hosts.items()} == {"a": "ok", "b": "unreachable"}
    scan = {
        "kind": "scan",
        "hosts": {
            "a": {
                "models": [{"id": "x", "path": "/m/x.gguf", "size_bytes": 9}],
                "rejected": [{"path": "/m/y", "reason": "truncated"}],
            }
        },
    }
    fleet = fold_document(fleet, scan, "2026-11-27T18:00:01.000Z")
    short = run("site.yml", on_a("registry", {"total": 1, "models": [{"id": "x", "path": "/m/x.gguf"}]}), name="r9")
    host = folded(short, fleet=fleet).hosts["a"]
    assert (host.models[0]["size_bytes"], len(host.rejected)) == (9, 1)


def test_liveness_changes_known_servers_only_and_keeps_why_one_is_down() -> None:
    fleet = folded(STATUS)
    seen = {("a", "x"): {"state": "unhealthy", "reason": "Nothing answers."}, ("a", "ghost"): {"state": "ready"}}
    host = with_liveness(fleet, seen, "2026-11-27T18:01:00.000Z", "sweep").hosts["a"]
    assert (list(host.servers), host.servers["x"].state, host.source, host.as_of) == (
        ["x"],
        "unhealthy",
        "sweep",
        "2026-11-27T18:01:00.000Z",
    )
    stopped = replace(fleet.hosts["a"].servers["x"], state="stopped", is_ready=False)
    down = replace(fleet, hosts={"a": replace(fleet.hosts["a"], servers={"x": stopped})})
    assert with_liveness(down, seen, "2026-11-27T18:01:00.000Z", "sweep").hosts["a"].servers["x"].state == "stopped"


def test_lock_of_another_run_is_seen_until_a_run_has_had_the_host() -> None:
    waiting = [
        event("run_started", {"playbook": "/x/site.yml"}, run="w"),
        event("lock_waited", {"holder": "bob, site.yml", "seconds": 3}, run="w", host="a", second=5),
    ]
    fleet = folded(waiting)
    assert (fleet.hosts["a"].lock_holder, fleet.hosts["a"].lock_at) == ("bob, site.yml", "2026-11-27T18:00:05.000Z")
    assert folded(STATUS, fleet=fleet).hosts["a"].lock_holder == "bob, site.yml"
    assert folded(DEPLOY, fleet=fleet).hosts["a"].lock_holder is None


def test_run_of_several_playbooks_is_that_which_deploys() -> None:
    both = run("site.yml gateway.yml", on_a("plan", {"plan": plan(planned("x"))}))
    assert list(folded(both).hosts["a"].servers) == ["x"]


def test_fleet_survives_json() -> None:
    fleet = folded(DEPLOY, STATUS, run("site.yml", on_a("plan", {"plan": plan(planned("y"))}), name="r5")[:-1])
    assert from_plain(json.loads(json.dumps(to_plain(fleet)))) == fleet
    assert from_plain({"layout": 0}) == Fleet()
