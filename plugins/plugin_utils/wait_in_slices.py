# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Wait for servers in short calls of the module wait_for_health, showing each server as it becomes ready."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._health.wait import summary
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
    """Call the module until every server is settled, showing each one; returns the module's answer for all servers."""
    began = time.monotonic()
    timeout = arguments.get("timeout")
    limit = LONGEST_SECONDS if timeout is None else float(timeout) + GRACE_SECONDS
    known: dict[str, dict[str, Any]] = {}
    baseline: dict[str, int] = {}
    pending: list[str] = []
    while True:
        slice_arguments = fill_in(
            {**arguments, "allow_degraded": True},
            run_id=this_run(task_vars["inventory_hostname"])["id"],
            slice=SLICE_SECONDS,
            elapsed=time.monotonic() - began,
            baseline=baseline,
        )
        if pending:
            slice_arguments["servers"] = pending
        answer = action.ask("wait_for_health", slice_arguments, task_vars)
        if "servers" not in answer:
            return answer
        known.update({server["name"]: server for server in answer["servers"]})
        width = max((len(name) for name in known), default=0)
        settled = [server for server in answer["servers"] if server["is_settled"]]
        # A server that was ready before is not shown.
        news = [_line(server, width) for server in settled if server["became_ready"] or not server["is_ready"]]
        if news:
            show(task_vars, news)
        for server in answer["servers"]:
            baseline.setdefault(server["name"], server["restarts"])
        pending = [server["name"] for server in answer["servers"] if not server["is_settled"]]
        if not pending or action._task.check_mode:
            servers = list(known.values())
            return {**answer, "servers": servers, **summary(servers)}
        if time.monotonic() - began > limit:
            raise AnsibleActionFail(
                f"The host reports after {limit:g} s that {', '.join(pending[:5])} will still become ready, although "
                "the time-out is over. Look at its clock and its log, and run again."
            )


def _line(server: dict[str, Any], width: int) -> str:
    where = f"      {server['name']:<{width}}  port {server['port']}"
    if server["is_ready"]:
        seconds = server["seconds_to_ready"]
        took = "" if seconds is None else f" in {seconds:.1f} s"
        return f"{where}  pid {server['pid']}  {server['tier'] or '-'}  ready{took}"
    fix = f"; {server['fix']}" if server["fix"] else ""
    return f"{where}  {server['state'].upper()}: {server['detail']}{fix}"
