# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Poll servers in parallel until each is ready, dead or timed out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._core.processes import Listener
from .._services.base import ServiceStatus
from .causes import explain
from .machine import Machine
from .outcome import Outcome
from .probe import Probe, Server

# Seconds to tolerate another process on a server's port: it may be a managed server that is still stopping.
FOREIGN_PATIENCE = 2.0
# If a process is ready at the first poll and older than this, its time to readiness is unknown.
FRESH_SECONDS = 5.0
FIRST_POLL = 0.05
# Poll again after 5 % of the time waited so far, so the measured time to readiness is at most 5 % too long.
POLL_SHARE = 0.05
LOG_LINES = 20
MESSAGE_LINES = 8


def wait(
    servers: Sequence[Server],
    machine: Machine,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    interval: float,
    timeout: float | None = None,
    slice_seconds: float | None = None,
    elapsed: float = 0.0,
    baseline: Mapping[str, int] | None = None,
) -> list[Outcome]:
    """Wait until every server is settled (ready, dead or timed out) or the slice ends; returns an outcome for each.

    timeout applies to each server, by default its max_startup_time. elapsed is the seconds spent in earlier slices.
    baseline is each server's restart count in the first slice: a higher count means a crash.
    """
    began = clock()
    first_restarts = dict(baseline or {})
    outcomes: dict[str, Outcome] = {}
    foreign_since: dict[str, float] = {}
    seen_waiting = {str(server["name"]) for server in servers} if elapsed else set()
    pending = list(servers)
    while True:
        statuses = machine.status([server["name"] for server in pending])
        alive = [server for server in pending if statuses[server["name"]].is_alive]
        probes = machine.probe(alive, {name: status.pid for name, status in statuses.items()})
        now = clock()
        for server in pending:
            name = server["name"]
            status, answer = statuses[name], probes.get(name)
            restarts = first_restarts.setdefault(name, status.restarts)
            if answer is not None and answer.state == "wrong_identity":
                foreign_since.setdefault(name, now)
            else:
                foreign_since.pop(name, None)
            limit = float(server["max_startup_time"]) if timeout is None else timeout
            outcomes[name] = _outcome(
                server,
                status,
                answer,
                machine,
                crashed=status.restarts > restarts,
                watched=name in seen_waiting,
                foreign_for=now - foreign_since.get(name, now),
                late=limit if elapsed + now - began >= limit else None,
            )
        pending = [server for server in pending if not outcomes[server["name"]].is_settled]
        # Hung servers are excluded: they may have become ready long ago.
        seen_waiting.update(name for name, outcome in outcomes.items() if outcome.state in ("loading", "not_listening"))
        passed = now - began
        over = slice_seconds is not None and passed >= slice_seconds
        if not pending or over:
            return [outcomes[server["name"]] for server in servers]
        pause = min(max(FIRST_POLL, POLL_SHARE * (elapsed + passed)), interval)
        sleep(pause if slice_seconds is None else min(pause, slice_seconds - passed))


def _outcome(
    server: Server,
    status: ServiceStatus,
    answer: Probe | None,
    machine: Machine,
    *,
    crashed: bool,
    watched: bool,
    foreign_for: float,
    late: float | None,
) -> Outcome:
    name, port, tier = str(server["name"]), int(server["port"]), server.get("tier")
    if answer is not None and answer.state == "ready" and not crashed:
        uptime = machine.uptime(status.pid) if status.pid else None
        seconds = round(uptime, 2) if uptime is not None and (watched or uptime <= FRESH_SECONDS) else None
        ready = Outcome(name, port, tier, status.pid, "ready", True, True, seconds, restarts=status.restarts)
        return replace(ready, token_seconds=answer.seconds, tokens_per_second=answer.tokens_per_second)
    if status.state == "sleeping" and status.exit_text is None:
        return Outcome(name, port, tier, None, "sleeping", True, True, restarts=status.restarts)
    detail: str | None
    if answer is None or crashed:
        state, detail = "failed", _death(status, crashed)
    elif (answer.state == "wrong_identity" and foreign_for >= FOREIGN_PATIENCE) or answer.state == "unprotected":
        state, detail = answer.state, answer.detail
    elif late is not None:
        state, detail = answer.state, f"not ready after {late:g} s" + (f": {answer.detail}" if answer.detail else "")
    else:
        return Outcome(name, port, tier, status.pid, answer.state, restarts=status.restarts, detail=answer.detail)
    tail = machine.log_tail(name, LOG_LINES)
    fix = explain(tail, status.exit_code, _program(server), machine.is_readable) if state == "failed" else None
    if state == "wrong_identity":
        fix = "stop what answers there, or run with -e servers_move_on_conflict=true"
    if state == "unprotected":
        fix = "its llama-server does not heed the key file: update it. A run stops such a server"
    return Outcome(
        name,
        port,
        tier,
        status.pid,
        state,
        is_settled=True,
        restarts=status.restarts,
        exit_code=status.exit_code,
        exit_text=status.exit_text,
        detail=detail,
        fix=fix,
        log_tail=tuple(tail),
    )


def _program(server: Server) -> str:
    return str((server.get("argv") or [""])[0])


def _death(status: ServiceStatus, crashed: bool) -> str:
    if crashed:
        return f"crashed (restarts: {status.restarts})"
    if status.state == "absent":
        return "the service manager does not know it: run site.yml"
    if status.state == "stopped":
        return "it is stopped" if status.exit_text is None else f"it is stopped ({status.exit_text})"
    return status.exit_text or "it ended"


def with_stops(outcomes: Sequence[Outcome], opened: Sequence[str]) -> list[Outcome]:
    """Return the outcomes, with the reason added for servers that were stopped because they were newly opened."""
    return [
        replace(outcome, detail=f"{outcome.detail}; stopped, as this deployment opened it to other machines")
        if outcome.name in opened
        else outcome
        for outcome in outcomes
    ]


def with_holders(outcomes: Sequence[Outcome], held: Mapping[int, Listener]) -> list[Outcome]:
    """Return the outcomes, with the process that now listens on a failed server's port added to its detail."""
    return [
        replace(outcome, detail=f"{outcome.detail}; port {outcome.port} is held by {held[outcome.port].holder}")
        if outcome.state == "failed" and outcome.pid is None and outcome.port in held
        else outcome
        for outcome in outcomes
    ]


def failure_text(servers: Sequence[Mapping[str, Any]]) -> str:
    """Return a message with the state, fix and last log lines of each server that is not ready."""
    parts = []
    for server in servers:
        if server["is_ready"]:
            continue
        text = f"{server['name']} (port {server['port']}): {server['detail'] or server['state']}"
        if server["fix"]:
            text += f"; {server['fix']}"
        tail = "".join(f"\n    {line}" for line in server["log_tail"][-MESSAGE_LINES:])
        parts.append(text + (f"\n  its last lines:{tail}" if tail else ""))
    return "\n".join(parts)


def to_be_stopped(
    outcomes: Sequence[Outcome], statuses: Mapping[str, ServiceStatus], opened: Sequence[str] = ()
) -> list[str]:
    """Return names of servers that must not continue.

    These have a configuration error (exit code 1) and their manager would restart them, answer without a key, or are
    not ready and among those that this deployment opened to other machines.
    """
    return [
        outcome.name
        for outcome in outcomes
        if outcome.state == "unprotected"
        or (outcome.exit_code == 1 and statuses[outcome.name].state == "restarting")
        or (outcome.name in opened and outcome.is_settled and not outcome.is_ready)
    ]


def summary(servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the overall result: complete, ready, failed_servers, unprotected_servers and msg."""
    ready = sum(bool(server["is_ready"]) for server in servers)
    text = f"{ready} of {len(servers)} servers are ready"
    failures = failure_text(servers)
    return {
        "complete": all(server["is_settled"] for server in servers),
        "ready": ready,
        "failed_servers": [server["name"] for server in servers if not server["is_ready"]],
        "unprotected_servers": [server["name"] for server in servers if server["state"] == "unprotected"],
        "msg": f"{text}\n{failures}" if failures else text,
    }
