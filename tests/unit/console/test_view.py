# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folding events and documents: what is deployed, what is live, and what drifts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace
from typing import Any

import pytest
from magi_llama_console.api.v1 import hosts, servers, shapes
from magi_llama_console.fleet.capacity import capacity
from magi_llama_console.fleet.facts import Fleet, Host, from_plain, host_to_plain, models_to_plain, to_plain
from magi_llama_console.fleet.live import with_liveness
from magi_llama_console.fleet.models import merged
from magi_llama_console.fleet.received import Unusable
from magi_llama_console.fleet.view import MAX_RUNS, fold, fold_document, forget_run
from pydantic_core import to_json

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
    # What was free before the deployment is not any more.
    assert (host.ram.total_bytes, host.ram.free_bytes, host.ram.planned_bytes) == (1000, None, 200)
    assert [(gpu.memory.total_bytes, gpu.memory.free_bytes, gpu.memory.planned_bytes) for gpu in host.gpus] == [
        (500, None, 100)
    ]
    later = folded(DEPLOY, run("plan.yml", on_a("plan", {"plan": plan(planned("x"))}, 20), name="p")).hosts["a"]
    assert (later.ram.free_bytes, later.gpus[0].memory.free_bytes) == (600, 400)


def test_values_of_environment_are_not_kept() -> None:
    fleet = folded(DEPLOY)
    assert fleet.hosts["a"].servers["x"].environment_names == ("MAGI_LLAMA_SERVER", "SECRET_TOKEN")
    assert "do-not-keep" not in json.dumps([to_plain(fleet), host_to_plain(fleet.hosts["a"])])


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
    # Whether these are all of its servers only a status says.
    assert (host.state, host.is_known) == ("unknown", False)
    assert (host.servers["x"].reason, host.servers["x"].fix, host.servers["y"].reason) == (
        "exit 1",
        "Lower ctx_size.",
        None,
    )


def test_failed_run_says_only_of_the_servers_it_had_begun_with_what_is_deployed() -> None:
    recap = {"a": {"ok": 5, "failed": 1, "unreachable": 0}}
    second = plan(planned("x", "stop"), planned("y", port=8081), planned("z", port=8082), profile="fast")
    failed = run("site.yml", on_a("plan", {"plan": second}, 20), on_a("server_ready", {"server": "y"}, 21), recap=recap)
    host = folded(DEPLOY, failed).hosts["a"]
    assert {name: one.state for name, one in host.servers.items()} == {"x": "ready", "y": "ready"}
    assert host.profile == "production"


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
    host = with_liveness(fleet, seen, "2026-11-27T18:00:59.000Z", "2026-11-27T18:01:00.000Z", "sweep").hosts["a"]
    assert (list(host.servers), host.servers["x"].state, host.source, host.as_of) == (
        ["x"],
        "unhealthy",
        "sweep",
        "2026-11-27T18:01:00.000Z",
    )
    stopped = replace(fleet.hosts["a"].servers["x"], state="stopped", is_ready=False)
    down = replace(fleet, hosts={"a": replace(fleet.hosts["a"], servers={"x": stopped})})
    late = with_liveness(down, seen, "2026-11-27T18:00:59.000Z", "2026-11-27T18:01:00.000Z", "sweep")
    assert late.hosts["a"].servers["x"].state == "stopped"


def test_look_that_began_before_a_stop_does_not_undo_it() -> None:
    stop = [
        event("run_started", {"playbook": "stop.yml"}, run="r2"),
        event("server_stopped", {"server": "x", "reason": None}, run="r2", host="a", second=20),
    ]
    fleet, seen = folded(DEPLOY, stop), {("a", "x"): {"state": "ready", "reason": None}}
    early = with_liveness(fleet, seen, "2026-11-27T18:00:19.900Z", "2026-11-27T18:00:20.100Z", "sweep")
    assert early.hosts["a"].servers["x"].state == "stopped"
    later = with_liveness(fleet, seen, "2026-11-27T18:00:30.000Z", "2026-11-27T18:00:30.100Z", "sweep")
    assert later.hosts["a"].servers["x"].state == "ready"


def test_lock_that_a_run_waits_for_is_not_its_own() -> None:
    """The holder that lock_waited names may be another controller's run, which is not a job."""
    waited = [
        event("run_started", {"playbook": "/x/site.yml"}, run="w"),
        event("lock_waited", {"holder": "bob, site.yml", "seconds": 3}, run="w", host="a", second=5),
    ]
    fleet = folded(waited)
    assert "bob" not in repr(fleet)


def test_run_of_several_playbooks_is_that_which_deploys() -> None:
    both = run("site.yml gateway.yml", on_a("plan", {"plan": plan(planned("x"))}))
    assert list(folded(both).hosts["a"].servers) == ["x"]


@pytest.mark.parametrize(
    ("playbook", "counts", "rc", "check", "is_later"),
    [
        ("rollback.yml", {"changed": 2}, 0, False, True),
        ("rollout.yml", {"changed": 1, "failed": 1}, 2, False, True),
        ("site.yml", {}, 0, False, False),
        ("site.yml", {"failed": 1}, 2, False, False),
        # Interrupted, by a signal.
        ("site.yml", {"failed": 1}, 137, False, True),
        ("site.yml", {"changed": 2}, 0, True, False),
        # Neither has another deployment.
        ("restart.yml", {"changed": 1}, 0, False, False),
        ("status.yml", {}, 0, False, False),
    ],
)
def test_run_that_deploys_and_has_changed_a_host_is_its_latest_deployment(
    playbook: str, counts: dict[str, int], rc: int, check: bool, is_later: bool
) -> None:
    later = run(playbook, check=check, recap={"a": {"ok": 3, **counts}}, name="r2")
    later[-1]["data"]["rc"] = rc
    first, last = "2026-11-27T18:00:59.000Z", "2026-11-27T18:01:00.000Z"
    later[-1]["at"] = last
    before = run("site.yml", on_a("plan", {"plan": plan(planned("x"))}), recap={"a": {"ok": 3, "changed": 1}})
    fleet = folded(before, later)
    assert fleet.hosts["a"].deployed_at == (last if is_later else first)
    assert saved(fleet).hosts["a"].deployed_at == fleet.hosts["a"].deployed_at


def saved(fleet: Fleet) -> Fleet:
    parts = [{name: write(host) for name, host in fleet.hosts.items()} for write in (host_to_plain, models_to_plain)]
    return from_plain(*json.loads(json.dumps([to_plain(fleet), *parts])))


def test_fleet_survives_json() -> None:
    unended = run("site.yml", on_a("plan", {"plan": plan(planned("y"))}), name="r5")[:-1]
    scanned = run("scan.yml", on_a("registry", {"models": [{"id": "x"}], "rejected": [{"path": "/y"}]}), name="r6")
    fleet = folded(DEPLOY, STATUS, scanned, unended)
    assert fleet.hosts["a"].models and saved(fleet) == fleet
    assert from_plain({"layout": 0}, {}, {}) == Fleet()


DEEP: list[Any] = reduce(lambda inside, _: [inside], range(900), [])
BAD: list[Any] = [
    DEEP,
    None,
    1,
    -1,
    1.5,
    "abc",
    [1],
    {"x": 1},
    True,
    float("nan"),
    float("inf"),
    2**80,
    "\ud800",
    [],
    {},
]


def broken(document: Any, places: Sequence[Any] = ()) -> Iterator[tuple[Any, Any]]:
    """Each place in a document, and the document with each of the bad values there."""
    found = document
    for place in places:
        found = found[place]
    if places:
        for bad in BAD:
            copy = json.loads(json.dumps(document))
            inner = copy
            for place in places[:-1]:
                inner = inner[place]
            inner[places[-1]] = bad
            yield (*places, bad), copy
    keys = list(found) if isinstance(found, dict) else list(range(len(found))) if isinstance(found, list) else []
    for key in keys:
        yield from broken(document, (*places, key))


MEMORY = {"planned_bytes": 5, "loaded_bytes": 4, "loaded_gpu_bytes": 1, "rows": [{"name": "x", "model_bytes": 3}]}


@pytest.mark.parametrize(
    "events",
    [
        DEPLOY,
        run(
            "status.yml", on_a("status", {"status": status(one_status("x", memory=MEMORY)), "drift": {"x": "why"}}, 10)
        ),
        run("scan.yml", on_a("registry", {"models": [{"id": "x", "path": "/x", "size_bytes": 3}], "rejected": []}, 10)),
        run("site.yml", on_a("server_failed", {"server": "x", "port": 1, "reason": "r", "fix": "f"}, 10)),
    ],
    ids=["deployment", "status", "scan", "failure"],
)
def test_whatever_a_host_sends_the_answers_about_the_fleet_can_be_given(events: list[dict[str, Any]]) -> None:
    """An event is used or refused; what was kept fits the shapes of the API and can be written as JSON."""
    count = 0
    for where, changed in broken(events):
        fleet = folded(DEPLOY)
        for one in changed:
            if isinstance(one, dict):
                with suppress(Unusable):
                    fleet = fold(fleet, one)
        count += 1
        for host in fleet.hosts.values():
            try:
                answerable(host)
            except Exception as error:
                raise AssertionError(f"{where}: {error}") from error
        json.dumps([to_plain(fleet), *map(host_to_plain, fleet.hosts.values())], allow_nan=False)
    assert count > 200


def answerable(host: Host) -> None:
    """Raises where an answer about a host cannot be given."""
    inventory = SimpleNamespace(address="a", groups=())
    console: Any = SimpleNamespace(
        fleet=SimpleNamespace(inventory=SimpleNamespace(hosts={host.name: inventory}), stale_since=lambda host: None)
    )
    hosts.described(console, host, {}).model_dump_json().encode()
    for server in host.servers.values():
        to_json(servers.described(server))
        shapes.Server.model_validate(servers.described(server), strict=True)
        servers.truth(server)
        shapes.Footprint(**{**servers.NEEDS, **(server.estimate or {})}).model_dump_json().encode()
    capacity([host])
    for model in merged([host], {}):
        shapes.Model(**model).model_dump_json().encode()


def test_event_that_cannot_be_used_names_what_is_wrong() -> None:
    wrong = on_a("plan", {"plan": {"profile": "p", "servers": [{"name": "x"}], "memory": {}}})
    with pytest.raises(Unusable, match="planned server has no usable model_id"):
        fold(folded(DEPLOY), wrong)
    for at in ("yesterday", "2026-11-27T18:00:00", 7, "0001-01-01T00:00:00+14:00"):
        with pytest.raises(Unusable, match="the event has no usable at"):
            fold(Fleet(), {**DEPLOY[0], "at": at})


def test_times_are_written_alike_so_that_they_sort() -> None:
    stop = on_a("server_stopped", {"server": "x"}) | {"at": "2026-11-27T19:00:30.5+01:00"}
    assert folded(DEPLOY, [stop]).hosts["a"].changed_at == "2026-11-27T18:00:30.500Z"


def test_document_of_a_host_that_cannot_be_used_leaves_the_others_theirs() -> None:
    document = {"kind": "status", "hosts": {"a": {"servers": [{"name": 1}]}, "b": status(one_status("x")), "c": 7}}
    fleet = fold_document(Fleet(), document, "2026-11-27T18:00:00.000Z")
    assert {name: one.state for name, one in fleet.hosts.items()} == {"a": "unknown", "b": "ok"}
