# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes servers one by one where they may not start together; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.action.run_lock import release_after_failed_handler, this_run
from ansible_collections.magi.llama.plugins.action.wait_for_health import wait_in_slices
from ansible_collections.magi.llama.plugins.module_utils._service import ended_text

MODULE = "magi.llama.server_state"


class ActionModule(ActionBase):
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = {**self._task.args, "run_id": this_run()["id"]}
        _result, checked = self.validate_argument_spec(
            argument_spec={
                # Of the host: a ~ is the home there, so it is not expanded here.
                "state_dir": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["started", "stopped", "restarted"]},
                "servers": {"type": "list", "elements": "str", "default": []},
                "actions": {"type": "dict"},
                "concurrent": {"type": "bool", "default": True},
                "timeout": {"type": "float"},
                "supervisord_path": {"type": "str"},
            }
        )
        if checked["concurrent"] or self._task.check_mode or checked["state"] == "stopped":
            result.update(self._execute_module(MODULE, arguments, task_vars=task_vars))
        else:
            result.update(self._one_by_one(arguments, checked, task_vars))
        signals = {server["name"]: server.get("signal") for server in result.get("servers", [])}
        result["ended"] = ended_text({name: number for name, number in signals.items() if number})
        if result.get("failed"):
            release_after_failed_handler(self, checked["state_dir"], task_vars)
        return result

    def _one_by_one(
        self, arguments: dict[str, Any], checked: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Stop what is to stop, then start each server and wait for it before the next."""
        actions, failure = self._actions(checked, task_vars)
        if failure:
            return failure
        common = {key: value for key, value in arguments.items() if key in ("state_dir", "supervisord_path", "run_id")}
        stops = {name: action for name, action in actions.items() if action == "stop"}
        rounds = [stops] if stops or not actions else []
        rounds += [{name: action} for name, action in actions.items() if action != "stop"]
        total: dict[str, Any] = {"changed": False, "servers": [], "msg": ""}
        for part in rounds:
            answer = self._execute_module(MODULE, {**common, "actions": part}, task_vars=task_vars)
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

    def _actions(
        self, checked: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[dict[str, str], dict[str, Any] | None]:
        if checked["actions"] is not None:
            return checked["actions"], None
        arguments = {"state_dir": checked["state_dir"], "servers": checked["servers"]}
        answer = self._execute_module("magi.llama.server_info", arguments, task_vars=task_vars)
        if answer.get("failed"):
            return {}, answer
        action = {"started": "start", "restarted": "restart"}[checked["state"]]
        return {server["name"]: action for server in answer["status"]["servers"]}, None
