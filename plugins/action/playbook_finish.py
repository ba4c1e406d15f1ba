# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a playbook's result and fails the hosts that failed; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.playbook_finish import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text
from ansible_collections.magi.llama.plugins.module_utils._output.fleet import fleet_lines
from ansible_collections.magi.llama.plugins.module_utils._output.plan_summary import plan_summary_lines
from ansible_collections.magi.llama.plugins.module_utils._output.result_document import result_document
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.earlier_tasks import LEFT_OUT
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import words
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.host_results import failure, host_result, host_state
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.result_file import publish
from ansible_collections.magi.llama.plugins.plugin_utils.show import BEGUN, is_read_by_program, show


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        # By now every host of the batch has finished the earlier tasks, so the first one has all results.
        batch = task_vars.get("ansible_play_batch") or task_vars["ansible_play_hosts_all"]
        if task_vars["inventory_hostname"] == batch[0]:
            result.update(_show_all(arguments, len(batch), task_vars))
        result["changed"] = False
        own = failure(task_vars)
        if own:
            # That task has shown its error already; no task has shown why a host was out of reach.
            where = f'The playbook stopped here at the task "{own["task"]}".' if own["task"] else None
            if where and BEGUN not in task_vars:
                where += f" {LEFT_OUT}"
            first = (str(own["error"]).splitlines() or [""])[0]
            return {
                **result,
                "unreachable" if own["unreachable"] else "failed": True,
                "msg": visible_text(where or first),
            }
        behind = _gates(words(arguments["fail_on"]), arguments["status"], arguments["drift"])
        return {**result, "failed": bool(behind), "msg": visible_text("\n".join(behind))} if behind else result


def _show_all(arguments: dict[str, Any], batch_size: int, task_vars: dict[str, Any]) -> dict[str, Any]:
    """Publish the document of all hosts, and the summary of a fleet; returns what the task's result has of them."""
    hosts = task_vars["ansible_play_hosts_all"]
    on_screen = arguments["format"] == "json"
    is_plan = arguments["playbook"] == "plan"
    has_summary = is_plan or (arguments["playbook"] == "site" and len(hosts) > 1)
    if not (on_screen or arguments["path"] or has_summary):
        return {}
    found = {name: task_vars["hostvars"][name] for name in hosts}
    results = {name: host_result(arguments["playbook"], one) for name, one in found.items()}
    states = {name: host_state(one) for name, one in found.items()}
    # No batch follows one that failed. The file has what is known by then.
    has_failed = not {"failed", "unreachable"}.isdisjoint(states.values())
    is_last = has_failed or "not begun" not in states.values() or batch_size == len(hosts)
    document = result_document(arguments["playbook"], results)
    if has_summary and is_last:
        lines = plan_summary_lines(document) if is_plan else fleet_lines(results, states)
        show(task_vars, [as_called(line) for line in lines], prefixed=False)
    if not on_screen and not arguments["path"]:
        return {}
    publish(document, on_screen and is_last, arguments["path"])
    return {"document": document} if on_screen and is_last and is_read_by_program() else {}


def _gates(names: list[str], status: dict[str, Any] | None, drift: dict[str, str]) -> list[str]:
    """Return a message for each gate that the host does not pass."""
    servers = (status or {}).get("servers", ())
    not_ready = [f"{server['name']} {server['state']}" for server in servers if not server["is_ready"]]
    lines = []
    if "degraded" in names and not_ready:
        lines.append(f"degraded, {len(not_ready)} of {len(servers)} servers are not ready: {', '.join(not_ready)}")
    if "drift" in names and drift:
        lines.append(f"drift, {'; '.join(f'{name}: {reason}' for name, reason in drift.items())}")
    return lines
