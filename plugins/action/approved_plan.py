# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares plans with the one that was approved; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.approved_plan import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text, visible_value
from ansible_collections.magi.llama.plugins.module_utils._plan.approval import compare, host_error
from ansible_collections.magi.llama.plugins.plugin_utils.approved import read_approved
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.host_results import host_result
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        result["changed"] = False
        if arguments["apply"] is not None:
            return {**result, **_compare_all(arguments["apply"], task_vars)}
        error = host_error(visible_value(arguments["approved"]), visible_value(arguments["plan"]))
        if error:
            raise AnsibleActionFail(visible_text(as_called(error)))
        return result


def _compare_all(given: Any, task_vars: dict[str, Any]) -> dict[str, Any]:
    hosts = list(task_vars["ansible_play_hosts_all"])
    found = {name: visible_value(host_result("plan", task_vars["hostvars"][name])) for name in hosts}
    # The others have failed by themselves, and say why.
    planned = {name: plan for name, plan in found.items() if "hash" in plan and "error" not in plan}
    verdict = compare(read_approved(given), planned, hosts)
    errors = {name: visible_text(as_called(error)) for name, error in verdict.errors.items()}
    return {"matches": verdict.is_approved, "hash": verdict.hash, "errors": errors}
