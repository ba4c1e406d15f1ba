# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes servers one by one where they may not start together; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.server_state import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import FILLED_IN, fill_in
from ansible_collections.magi.llama.plugins.module_utils._output.event import server_data
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run
from ansible_collections.magi.llama.plugins.plugin_utils.wait_in_slices import wait_in_slices

MODULE = "magi.llama.server_state"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = fill_in(self._task.args, run_id=this_run(task_vars["inventory_hostname"])["id"])
        checked = check_arguments(self, ARGUMENTS)
        at_once = checked["concurrent"] or self._task.check_mode or checked["state"] == "stopped"
        deployed: dict[str, Any] = {}
        if not at_once and (checked["concurrent"] is None or checked["actions"] is None):
            asking = {"state_dir": checked["state_dir"], "servers": checked["servers"]}
            deployed = self.ask("magi.llama.server_info", asking, task_vars)
            if deployed.get("failed"):
                return {**result, **deployed}
            at_once = checked["concurrent"] is None and deployed["start"]["concurrent"]
        if at_once:
            result.update(self.ask(MODULE, arguments, task_vars))
        else:
            actions = checked["actions"]
            if actions is None:
                action = {"started": "start", "restarted": "restart"}[checked["state"]]
                actions = {server["name"]: action for server in deployed["status"]["servers"]}
            result.update(self._one_by_one(actions, arguments, checked, task_vars))
        if checked["actions"] is not None and not self._task.check_mode:
            # This runs in a handler, whose result is not displayed.
            show(task_vars, [f"      {line}" for line in stop_lines(result)])
        if not self._task.check_mode:
            for data in _stopped(result):
                event(task_vars, "server_stopped", data)
        return result

    def _one_by_one(
        self,
        actions: dict[str, str],
        arguments: dict[str, Any],
        checked: dict[str, Any],
        task_vars: dict[str, Any],
    ) -> dict[str, Any]:
        """Stop all servers to stop, then start the others one by one, waiting for each."""
        common = {
            key: value
            for key, value in arguments.items()
            if key in ("state_dir", "supervisord_path", "is_lasting", FILLED_IN)
        }
        stops = {name: action for name, action in actions.items() if action == "stop"}
        rounds = [stops] if stops or not actions else []
        rounds += [{name: action} for name, action in actions.items() if action != "stop"]
        total: dict[str, Any] = {"changed": False, "servers": [], "msg": ""}
        for part in rounds:
            answer = self.ask(MODULE, {**common, "actions": part}, task_vars)
            if answer.get("failed"):
                return {**total, **answer, "changed": total["changed"] or answer.get("changed", False)}
            total["changed"] = total["changed"] or answer["changed"]
            if answer["servers"]:
                total["servers"] += answer["servers"]
                total["msg"] = "\n".join(filter(None, [total["msg"], answer["msg"]]))
                total.setdefault("warnings", []).extend(answer.get("warnings", []))
            started = [server["name"] for server in answer["servers"] if server["action"] != "stop"]
            if started:
                waiting = {"state_dir": checked["state_dir"], "servers": started}
                if checked["timeout"] is not None:
                    waiting["timeout"] = checked["timeout"]
                wait_in_slices(self, waiting, task_vars)
        total["msg"] = total["msg"] or "nothing to do"
        return total


def stop_lines(result: dict[str, Any]) -> list[str]:
    """Return the lines of a result about servers that were stopped, or whose stop was stuck."""
    lines = str(result.get("msg", "")).splitlines()
    return [
        line
        for server, line in zip(result.get("servers", ()), lines)
        if server["action"] == "stop" or server.get("stuck")
    ]


def _stopped(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data of an event for each server that was stopped and is not started again."""
    return [
        server_data(server["name"], seconds=server.get("seconds"), reason=server.get("error"))
        for server in result.get("servers", ())
        if server["action"] == "stop" and not server.get("stuck")
    ]
