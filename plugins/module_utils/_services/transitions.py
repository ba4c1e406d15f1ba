# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Bring servers into a state: choose each server's action, and apply the actions in bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core.errors import MagiError
from .._core.processes import Process
from .base import DEFAULT_STOP_TIMEOUT, STUCK, ServiceDriver, ServiceStatus, Stopped


class ActionError(MagiError):
    """Raised for an unknown action, or one for a server that is not deployed."""


@dataclass(frozen=True)
class Result:
    """What was done to a server; signal and seconds describe its stop, null if it was not running.

    stuck says that one SIGTERM did not end it.
    """

    name: str
    action: str
    pid_before: int | None
    pid_after: int | None
    signal: str | None
    seconds: float | None
    error: str | None = None
    stuck: bool = False


def check_actions(actions: Mapping[str, Any], record: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the actions as given. Raises ActionError if one cannot be done."""
    deployed = {server["name"] for server in record}
    for name, action in actions.items():
        if action not in ("start", "restart", "stop"):
            raise ActionError(f"actions: {name}: {action!r} is not one of start, restart, stop.")
        if action != "stop" and name not in deployed:
            raise ActionError(f"actions: {name} is not deployed here and cannot {action}: run site.yml.")
    return dict(actions)


def actions_for(state: str, statuses: Mapping[str, ServiceStatus], strays: Iterable[str] = ()) -> dict[str, str]:
    """Return actions, by server name, that bring servers into the state: started, stopped or restarted.

    strays are running servers that their manager does not track.
    """
    stray = set(strays)
    if state == "restarted":
        return dict.fromkeys(statuses, "restart")
    if state == "started":
        return {name: "start" for name, status in statuses.items() if not status.is_up}
    return {
        name: "stop"
        for name, status in statuses.items()
        if status.is_up or status.state == "restarting" or name in stray
    }


def outdated(record: Sequence[Mapping[str, Any]], running: Mapping[str, Process]) -> set[str]:
    """Return servers that run with a launch config other than the recorded one, after a restart by their manager."""
    return {
        str(server["name"])
        for server in record
        if server["name"] in running
        and running[server["name"]].env.get("MAGI_LLAMA_REVISION") != server.get("revision")
    }


def needed(
    actions: Mapping[str, str],
    statuses: Mapping[str, ServiceStatus],
    strays: Iterable[str],
    record: Sequence[Mapping[str, Any]],
    outdated: Iterable[str] = (),
) -> dict[str, str]:
    """Return the actions that change something: running servers are not started, stopped ones are not stopped.

    A start of a server that runs but is outdated becomes a restart. A server that is no longer in the record still has
    to be forgotten if its manager knows it.
    """
    old = set(outdated)
    actions = {name: "restart" if action == "start" and name in old else action for name, action in actions.items()}
    stray = set(strays)
    deployed = {server["name"] for server in record}

    def changes(name: str, action: str) -> bool:
        status = statuses[name]
        if action == "start":
            return not status.is_up
        if action == "restart" or status.is_up or status.state == "restarting" or name in stray:
            return True
        return name not in deployed and status.state != "absent"

    return {name: action for name, action in actions.items() if changes(name, action)}


def apply(
    actions: Mapping[str, str],
    record: Sequence[Mapping[str, Any]],
    manager: ServiceDriver,
    find_strays: Callable[[Mapping[str, ServiceStatus]], list[Process]],
    end_strays: Callable[[Sequence[Process], float], Mapping[int, Stopped]],
    on_started: Callable[[Mapping[str, Any], bool], None],
) -> list[Result]:
    """Stop all servers to stop or restart, in parallel, then start those that are to run.

    on_started is called after each start with the server and whether it is the last; it may delay the next start.
    """
    deployed = {str(server["name"]): server for server in record}
    names = list(actions)
    before = manager.status(names)
    stray = find_strays(before)
    timeout = max(
        (float(deployed[name]["stop_timeout"]) for name in names if name in deployed), default=DEFAULT_STOP_TIMEOUT
    )
    ended = {stopped.name: stopped for stopped in end_strays(stray, timeout).values()} if stray else {}
    # A server that waits for an automatic restart is stopped first, so that its start counts as a new one.
    to_stop = [
        name
        for name in names
        if before[name].state == "restarting" or (actions[name] != "start" and before[name].is_up)
    ]
    ended.update(manager.stop(to_stop, timeout) if to_stop else {})
    manager.forget([name for name in names if name not in deployed])
    manager.reload(list(deployed))
    to_start = [name for name in names if actions[name] != "stop"]

    def started(name: str) -> None:
        on_started(deployed[name], name == to_start[-1])

    errors = manager.start(to_start, started) if to_start else {}
    after = manager.status(names)
    if not to_start:
        manager.shutdown_if_idle()
    return [
        _result(name, actions[name], before[name], after[name], ended.get(name), errors.get(name)) for name in names
    ]


def _result(
    name: str,
    action: str,
    before: ServiceStatus,
    after: ServiceStatus,
    ended: Stopped | None,
    error: str | None,
) -> Result:
    ran = ended is not None and ended.signal is not None
    return Result(
        name=name,
        action=action,
        pid_before=ended.pid if ended is not None and ended.pid else before.pid,
        pid_after=after.pid,
        signal=ended.signal if ended is not None and ran else None,
        seconds=ended.seconds if ended is not None and ran else None,
        error=error,
        stuck=ended is not None and ended.signal in STUCK,
    )


def result_lines(results: Sequence[Result]) -> list[str]:
    """Return what was done, human-readable: one line per server."""
    done = {"start": "started", "restart": "restarted", "stop": "stopped"}
    lines = []
    for result in results:
        parts = [f"{result.name}: {done[result.action]}" if result.error is None else f"{result.name}: {result.error}"]
        if result.signal is not None:
            stuck = " (stuck stop)" if result.stuck else ""
            parts.append(f"pid {result.pid_before} ended by {result.signal} in {result.seconds:.1f} s{stuck}")
        if result.pid_after is not None and result.action != "stop":
            parts.append(f"pid {result.pid_after}")
        lines.append(", ".join(parts))
    return lines
