# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Wait for servers in short calls of a module, showing each server as it is settled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._health.wait import summary
from ansible_collections.magi.llama.plugins.module_utils._output.event import server_data
from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run

# Long enough for most servers to be ready within the first call, short enough to show progress regularly.
SLICE_SECONDS = 2.5
# A server is settled at its time-out at the latest. The host may take this much longer to say so; a day is the limit
# where only the host knows the time-out.
GRACE_SECONDS = 120.0
LONGEST_SECONDS = 86400.0


def wait_in_slices(action: HostAction, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
    """Call wait_for_health until every server is settled, showing each one; returns its answer for all servers."""
    timeout = arguments.get("timeout")
    baseline: dict[str, int] = {}

    def note(servers: list[dict[str, Any]]) -> dict[str, Any]:
        for server in servers:
            baseline.setdefault(server["name"], server["restarts"])
        return {"baseline": dict(baseline)}

    answer = in_slices(
        action,
        "wait_for_health",
        {**arguments, "allow_degraded": True},
        task_vars,
        limit=LONGEST_SECONDS if timeout is None else float(timeout) + GRACE_SECONDS,
        lines=_lines,
        events=_event,
        note=note,
    )
    return {**answer, **(summary(answer["servers"]) if "servers" in answer else {})}


def in_slices(
    action: HostAction,
    module: str,
    arguments: dict[str, Any],
    task_vars: dict[str, Any],
    *,
    limit: float,
    lines: Callable[[list[dict[str, Any]], int], list[str]],
    events: Callable[[dict[str, Any]], tuple[str, dict[str, Any]] | None],
    note: Callable[[list[dict[str, Any]]], dict[str, Any]] = lambda _servers: {},
) -> dict[str, Any]:
    """Call a module that waits for servers until each is settled; returns its last answer, with all servers.

    lines returns what is shown of servers that are settled, with the width of their names; events returns the event of
    such a server, if it has one: its type and data. note returns what is filled
    in for the next call, from the servers of an answer. An answer without servers is returned as it is. Raises
    AnsibleActionFail where the host is not done after limit seconds.
    """
    began = time.monotonic()
    known: dict[str, dict[str, Any]] = {}
    pending: list[str] = []
    noted = note([])
    while True:
        slice_arguments = fill_in(
            arguments,
            run_id=this_run(task_vars["inventory_hostname"])["id"],
            slice=SLICE_SECONDS,
            elapsed=time.monotonic() - began,
            **noted,
        )
        if pending:
            slice_arguments["servers"] = pending
        answer = action.ask(module, slice_arguments, task_vars)
        if "servers" not in answer:
            return answer
        known.update({server["name"]: server for server in answer["servers"]})
        width = max((len(name) for name in known), default=0)
        settled = [server for server in answer["servers"] if server["is_settled"]]
        news = lines(settled, width)
        if news:
            show(task_vars, news)
        for found in filter(None, map(events, settled)):
            event(task_vars, *found)
        noted = note(answer["servers"])
        pending = [server["name"] for server in answer["servers"] if not server["is_settled"]]
        if not pending or action._task.check_mode:
            return {**answer, "servers": list(known.values())}
        if time.monotonic() - began > limit:
            raise AnsibleActionFail(
                f"The host reports after {limit:g} s that {', '.join(pending[:5])} will still be waited for, although "
                "the time-out is over. Look at its clock and its log, and run again."
            )


def _lines(settled: list[dict[str, Any]], width: int) -> list[str]:
    return [_line(server, width) for server in settled if _is_news(server)]


def _is_news(server: dict[str, Any]) -> bool:
    """Whether a server that is settled was not ready before."""
    return bool(server["became_ready"] or not server["is_ready"])


def _event(server: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    if not _is_news(server):
        return None
    name, port, seconds = server["name"], server["port"], server["seconds_to_ready"]
    if server["is_ready"]:
        return "server_ready", server_data(name, port, seconds)
    reason = ": ".join(filter(None, [server["state"], server["detail"]]))
    return "server_failed", server_data(name, port, None, reason, server["fix"])


def _line(server: dict[str, Any], width: int) -> str:
    where = f"      {server['name']:<{width}}  port {server['port']}"
    if server["is_ready"]:
        seconds = server["seconds_to_ready"]
        took = "" if seconds is None else f" in {seconds:.1f} s"
        return f"{where}  pid {server['pid']}  {server['tier'] or '-'}  ready{took}"
    fix = f"; {server['fix']}" if server["fix"] else ""
    return f"{where}  {server['state'].upper()}: {server['detail']}{fix}"
