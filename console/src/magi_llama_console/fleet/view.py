# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folds events and result documents into the fleet.

What is deployed changes only when a run has ended that was not a check: a preview never says it. Two kinds of events
count at once: that a host cannot be reached, which is true in a preview too, and that a server which is already known
became ready, failed or was stopped in a run that changes hosts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from . import received
from .facts import Fleet, Gpu, Host, Memory, Run, Server

LOG = logging.getLogger(__name__)
# Playbooks whose plan is what they deploy.
DEPLOYING = frozenset({"site", "rollout", "rollback"})
# Playbooks that never change a host, even where their events do not say that they only check.
LOOKING = frozenset({"plan", "scan", "status", "verify", "manifest"})
# Exit statuses of runs that came to their end, if some hosts have failed (2) or were out of reach (4). Any other one is
# that of a run that was interrupted, whose hosts may be anywhere on their way.
WHOLE = frozenset({0, 2, 4})
STATES = {"server_ready": "ready", "server_failed": "failed", "server_stopped": "stopped"}
KEPT = frozenset({"plan", "status", "registry", "unreachable", *STATES})
# A run that was killed never ends: the oldest are forgotten.
MAX_RUNS = 200


def fold(fleet: Fleet, event: Mapping[str, Any], sequence: int = 0) -> Fleet:
    """The fleet after one event; sequence is its number in the store. Unknown types change nothing.

    Raises received.Unusable, a ValueError, for an event that says nothing that could be used.
    """
    event = received.event(event)
    kind, run_id, host = event["type"], event["run"], event["host"]
    fleet = replace(fleet, sequence=max(sequence, fleet.sequence))
    if kind == "run_started":
        return _begin(fleet, event)
    run = fleet.runs.get(run_id)
    if kind == "run_ended":
        return _end(fleet, event, run)
    if run is None:
        # Events of a run whose beginning is not in the store.
        run = Run("", None, bool(event.get("check")))
    if kind not in KEPT or host is None:
        return fleet
    runs = {**fleet.runs, run_id: replace(run, events=(*run.events, event))}
    fleet = replace(fleet, runs=runs)
    if kind == "unreachable":
        return _with_host(fleet, _unreachable(_host(fleet, host)))
    if kind in STATES and not _is_preview(run, event):
        return _with_host(fleet, _server_event(_host(fleet, host), event))
    return fleet


def forget_run(fleet: Fleet, run_id: str) -> Fleet:
    """The fleet without what a lost run has sent: it did not end, so it does not say what is deployed."""
    return replace(fleet, runs={name: run for name, run in fleet.runs.items() if name != run_id})


def _begin(fleet: Fleet, event: Mapping[str, Any]) -> Fleet:
    data = event["data"]
    is_check = bool(event.get("check") or data.get("check"))
    # The playbooks of the command line.
    words = [word.rsplit("/", 1)[-1].removesuffix(".yml") for word in str(data.get("playbook") or "").split()]
    names = [word.removeprefix("magi.llama.") for word in words]
    playbook = next((name for name in names if name in DEPLOYING), names[0] if names else "")
    runs = dict(fleet.runs)
    while len(runs) >= MAX_RUNS:
        del runs[next(iter(runs))]
    runs[event["run"]] = Run(playbook, data.get("profile"), is_check)
    return replace(fleet, runs=runs)


def _is_preview(run: Run, event: Mapping[str, Any]) -> bool:
    return run.is_check or bool(event.get("check")) or run.playbook in LOOKING


def _end(fleet: Fleet, event: Mapping[str, Any], run: Run | None) -> Fleet:
    if run is None:
        return fleet
    fleet = forget_run(fleet, event["run"])
    recap: Mapping[str, Any] = event["data"].get("hosts") or {}
    is_whole = event["data"].get("rc") in WHOLE
    for one in run.events:
        name = one["host"]
        host = _host(fleet, name)
        numbers = recap.get(name, {})
        is_done = is_whole and not numbers.get("failed") and not numbers.get("unreachable")
        # The servers of which it has said something: where it has failed only these are as it has planned them.
        said = (other for other in run.events if other["host"] == name and other["type"] in STATES)
        begun = {other["data"]["server"] for other in said} if is_whole else set()
        fleet = _with_host(fleet, _apply(host, run, one, None if is_done else begun))
    has_deployed = run.playbook in DEPLOYING and not run.is_check
    for name, numbers in recap.items():
        # Of a run that was interrupted nothing says that it has changed nothing.
        if has_deployed and (numbers.get("changed") or not is_whole):
            fleet = _with_host(fleet, replace(_host(fleet, name), deployed_at=event["at"]))
        if numbers.get("unreachable"):
            fleet = _with_host(fleet, _unreachable(_host(fleet, name)))
        elif numbers.get("ok"):
            fleet = _with_host(fleet, replace(_host(fleet, name), is_reachable=True))
    return fleet


def _apply(host: Host, run: Run, event: Mapping[str, Any], begun: Set[str] | None) -> Host:
    """A host after one event of a run that has ended; begun are the servers it had begun with, None if it did all."""
    kind, data, at = event["type"], event["data"], event["at"]
    is_check = run.is_check or bool(event.get("check"))
    if kind == "plan":
        plan = data["plan"]
        if run.playbook in DEPLOYING and not is_check:
            return deployed(host, plan, at) if begun is None else begun_with(host, plan, begun)
        return previewed(host, plan, at, has_named_profile=run.profile is not None)
    if kind == "registry":
        return with_registry(host, data, at)
    if is_check:
        return host
    if kind == "status":
        return with_status(host, data["status"], at, drift=data.get("drift"))
    return _server_event(host, event) if kind in STATES and run.playbook not in LOOKING else host


def fold_document(fleet: Fleet, document: Mapping[str, Any], at: str) -> Fleet:
    """The fleet after the result document of a run that ended at this time and was not a check.

    A host of which it says nothing that could be used stays as it was.
    """
    for name, part in document["hosts"].items():
        host = _host(fleet, name)
        if not isinstance(part, dict):
            continue
        if part.get("task", "") is None:
            fleet = _with_host(fleet, _unreachable(host))
            continue
        try:
            host = _read(replace(host, is_reachable=True), document["kind"], part, at)
        except received.Unusable as error:
            LOG.warning("the %s of %s cannot be used: %s", document["kind"], name, error)
        fleet = _with_host(fleet, host)
    return fleet


def _read(host: Host, kind: str, part: Mapping[str, Any], at: str) -> Host:
    if kind == "status" and "servers" in part:
        return with_status(host, received.status(part), at)
    if kind == "scan" and "models" in part:
        return with_registry(host, received.registry(part), at)
    if kind == "verify" and "servers" in part:
        return _verified(host, received.verified(part), at)
    if kind == "plan" and "servers" in part:
        return previewed(host, received.plan(part), at, has_named_profile=True)
    return host


def with_status(host: Host, status: Mapping[str, Any], at: str, drift: Mapping[str, str] | None = None) -> Host:
    """A host after its status document: exactly these servers are deployed."""
    if host.changed_at is not None and at < host.changed_at:
        return host
    servers = {one["name"]: _from_status(host, one, at) for one in status["servers"]}
    found = dict(drift or {})
    for one in status["servers"]:
        if one.get("restart_pending"):
            found.setdefault(one["name"], "restart pending: its launch config is not the one it was started with")
    profiles = {one["profile"] for one in status["servers"] if one.get("profile")}
    changed = replace(
        host,
        servers=servers,
        is_known=True,
        is_reachable=True,
        as_of=at,
        source="status",
        profile=profiles.pop() if len(profiles) == 1 else host.profile,
        ram=replace(host.ram, planned_bytes=_sum(servers)),
    )
    return _with_drift(changed, host, at, drift_of_status=found)


def _from_status(host: Host, one: Mapping[str, Any], at: str) -> Server:
    before = host.servers.get(one["name"])
    memory = one.get("memory") or {}
    is_same = before is not None and before.port == one["port"] and before.model_id == one["model_id"]
    base = before if before is not None and is_same else None
    estimate = base.estimate if base else None
    planned = memory.get("planned_bytes")
    return Server(
        host=host.name,
        name=one["name"],
        model_id=one["model_id"],
        port=one["port"],
        state=one["state"],
        is_ready=one["is_ready"],
        display_name=one["display_name"],
        tier=one["tier"],
        kind=one.get("kind"),
        pid=one["pid"],
        uptime_seconds=one["uptime_seconds"],
        rss_bytes=one["rss_bytes"],
        vram_bytes=one.get("vram_bytes"),
        planned_bytes=(estimate or {}).get("total_bytes") or planned,
        restarts=one["restarts"],
        tokens_per_second=base.tokens_per_second if base else None,
        # What the last run said about a server that is still not ready.
        reason=None if one["is_ready"] or base is None else base.reason,
        fix=None if one["is_ready"] or base is None else base.fix,
        bind_address=one.get("bind_address"),
        has_tls=bool(one.get("has_tls")),
        is_on_demand=one["state"] == "sleeping" or bool(one.get("on_demand") or (base and base.is_on_demand)),
        argv=base.argv if base else None,
        environment_names=base.environment_names if base else None,
        revision=base.revision if base else None,
        estimate=estimate,
        truth={key: memory[key] for key in memory if key != "planned_bytes"} or None,
        slots=base.slots if base else None,
        context_size=one.get("context_size"),
        rates=base.rates if base else (),
        rate_pid=base.rate_pid if base else None,
        log=one.get("log", base.log if base else None),
        log_as_of=at if "log" in one else base.log_as_of if base else None,
    ).at_rate(at, one.get("tokens_per_second"))


def deployed(host: Host, plan: Mapping[str, Any], at: str) -> Host:
    """A host after a run that has carried this plan out."""
    servers = {one["name"]: _from_plan(host, one) for one in _lasting(plan)}
    changed = replace(
        host,
        servers=servers,
        is_known=True,
        is_reachable=True,
        as_of=at,
        source="events",
        changed_at=at,
        profile=plan["profile"] or host.profile,
        # What was free before is not any more: the next plan says what is.
        ram=replace(_memory(host.ram, plan, _sum(servers)), free_bytes=None),
        gpus=tuple(
            replace(gpu, memory=replace(gpu.memory, free_bytes=None))
            for gpu in _gpus(host.gpus, plan, is_deployed=True)
        ),
    )
    return _with_drift(changed, host, at, drift_of_plan={}, drift_of_status={})


def begun_with(host: Host, plan: Mapping[str, Any], names: Set[str]) -> Host:
    """A host after a run that has failed: these servers are as planned, the others as before."""
    planned = {one["name"]: _from_plan(host, one) for one in _lasting(plan) if one["name"] in names}
    return replace(host, servers={**host.servers, **planned}) if planned else host


def _lasting(plan: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The servers of a plan that are there after it."""
    return [one for one in plan["servers"] if one["action"] != "stop" and not one.get("stands_in_for")]


def previewed(host: Host, plan: Mapping[str, Any], at: str, has_named_profile: bool) -> Host:
    """A host after a preview: what its memory is, and drift where it is the deployed profile's own plan."""
    changed = replace(host, ram=_memory(host.ram, plan, None), gpus=_gpus(host.gpus, plan, is_deployed=False))
    if plan["profile"] != host.profile and (has_named_profile or host.profile is not None):
        return changed
    found = {
        one["name"]: f"{one['action']}: {one['reason']}"
        for one in plan["servers"]
        if one["action"] != "keep" and not one.get("stands_in_for")
    }
    return _with_drift(changed, host, at, drift_of_plan=found)


def _from_plan(host: Host, one: Mapping[str, Any]) -> Server:
    before = host.servers.get(one["name"])
    is_kept = before is not None and one["action"] == "keep"
    memory = one.get("memory") or {}
    argv = tuple(one.get("argv") or ())
    return replace(
        before if before is not None and is_kept else Server(host.name, one["name"], one["model_id"], 0, "", False),
        port=one["port"],
        model_id=one["model_id"],
        # Until the run, a sweep or a status says more.
        state=before.state if before is not None and is_kept else "running",
        display_name=one.get("display_name"),
        tier=one.get("tier"),
        kind=one.get("kind"),
        planned_bytes=memory.get("total_bytes"),
        bind_address=one.get("host"),
        has_tls="--ssl-cert-file" in argv,
        is_on_demand=bool(one.get("on_demand")),
        argv=argv,
        environment_names=tuple(sorted(one.get("env") or {})),
        revision=one.get("revision"),
        estimate=dict(memory) or None,
        slots=_number(argv, "--parallel"),
        context_size=memory.get("slot_context"),
    )


def _number(argv: tuple[str, ...], flag: str) -> int | None:
    value = argv[argv.index(flag) + 1] if flag in argv[:-1] else ""
    return int(value) if value.isdecimal() else None


def _server_event(host: Host, event: Mapping[str, Any]) -> Host:
    data = event["data"]
    server = host.servers.get(data["server"])
    if server is None:
        return host
    state = STATES[event["type"]]
    changed = replace(
        server,
        state=state,
        is_ready=state == "ready",
        port=data.get("port") or server.port,
        pid=server.pid if state == "ready" and server.is_ready else None,
        uptime_seconds=None if state != "ready" else server.uptime_seconds,
        rss_bytes=server.rss_bytes if state == "ready" else None,
        reason=None if state == "ready" else data.get("reason"),
        fix=None if state == "ready" else data.get("fix"),
    )
    servers = {**host.servers, server.name: changed}
    return replace(host, servers=servers, is_reachable=True, as_of=event["at"], source="events", changed_at=event["at"])


def with_registry(host: Host, registry: Mapping[str, Any], at: str) -> Host:
    """A host after a scan: a full registry replaces the short list of an event, not the other way round."""
    models = registry.get("models") or ()
    full = {one["id"]: one for one in host.models}
    # An event lists few keys of each model: what a scan has said of the same file stays.
    together = tuple(
        {**full[one["id"]], **one}
        if one["id"] in full and full[one["id"]].get("path") == one.get("path")
        else dict(one)
        for one in models
    )
    rejected = registry.get("rejected")
    kept = tuple(dict(one) for one in rejected) if isinstance(rejected, list) else host.rejected
    return replace(host, models=together, rejected=kept, models_as_of=at)


def _verified(host: Host, speeds: Mapping[str, float | None], at: str) -> Host:
    servers = {name: server.at_rate(at, speeds.get(name)) for name, server in host.servers.items()}
    return replace(host, servers=servers)


def _with_drift(changed: Host, before: Host, at: str, **parts: Mapping[str, str]) -> Host:
    changed = replace(changed, **parts)  # type: ignore[arg-type]
    since = (before.drift_since or at) if changed.drift else None
    return replace(changed, drift_since=since)


def _memory(ram: Memory, plan: Mapping[str, Any], planned_bytes: int | None) -> Memory:
    memory = plan.get("memory") or {}
    return Memory(
        memory.get("host_ram_bytes", ram.total_bytes),
        memory.get("host_available_bytes", ram.free_bytes),
        ram.planned_bytes if planned_bytes is None else planned_bytes,
    )


def _gpus(gpus: tuple[Gpu, ...], plan: Mapping[str, Any], is_deployed: bool) -> tuple[Gpu, ...]:
    """The GPUs as a plan found them; what is planned on each only where the plan was carried out."""
    memory = plan.get("memory") or {}
    found = memory.get("gpus")
    if found is None:
        return gpus
    before = {gpu.index: gpu.memory.planned_bytes for gpu in gpus}
    planned = dict(enumerate(memory.get("gpu_bytes") or ())) if is_deployed else before
    return tuple(
        Gpu(index, gpu["name"], Memory(gpu["total_bytes"], gpu["free_bytes"], planned.get(index)))
        for index, gpu in enumerate(found)
    )


def _sum(servers: Mapping[str, Server]) -> int | None:
    known = [
        (server.estimate or {}).get("ram_bytes", server.planned_bytes)
        for server in servers.values()
        if server.planned_bytes is not None
    ]
    return sum(known) if known or not servers else None


def _unreachable(host: Host) -> Host:
    return replace(host, is_reachable=False)


def _host(fleet: Fleet, name: str) -> Host:
    return fleet.hosts.get(name) or Host(name)


def _with_host(fleet: Fleet, host: Host) -> Fleet:
    return fleet if fleet.hosts.get(host.name) is host else replace(fleet, hosts={**fleet.hosts, host.name: host})
