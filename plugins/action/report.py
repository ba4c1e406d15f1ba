# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a run's progress on the controller; documented in the module of the same name."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.report import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._output import report
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.earlier_tasks import fact_of
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show


class ActionModule(HostAction):
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS)
        result["changed"] = False
        steps = arguments["step"]
        if {"health", "summary"}.intersection(steps) and "ready" not in arguments["health"]:
            # If unreachable hosts are ignored, as in a rollout, this detects them.
            raise AnsibleActionFail(arguments["health"].get("msg") or "The host did not report its servers' health.")
        for step in steps:
            lines = self._lines(step, arguments, task_vars)
            warnings = _warnings(step, arguments, task_vars["ansible_facts"])
            show(task_vars, lines + [f"{WARNING}{warning}" for warning in warnings])
        return result

    def _lines(self, step: str, arguments: dict[str, Any], task_vars: dict[str, Any]) -> list[str]:
        if step == "text":
            return [str(arguments["text"])]
        if step == "runtime":
            return report.runtime_lines(fact_of(task_vars, "llama_runtime"), arguments["tried"])
        if step == "status":
            return report.status_lines(arguments["status"])
        if step == "health":
            return report.health_lines(arguments["health"])
        if step == "summary":
            started = task_vars.get("__llama_begun", {}).get("started")
            seconds = time.time() - started if started else None
            # Where tags left the scan out there is none.
            registry, plan = task_vars["ansible_facts"].get("llama_registry"), fact_of(task_vars, "llama_plan")
            return report.summary_lines(registry, plan, arguments["health"], seconds)
        if step == "discovery":
            return report.discovery_lines(fact_of(task_vars, "llama_registry"), arguments["changes"])
        if step == "registry":
            return report.registry_lines(fact_of(task_vars, "llama_registry"), fact_of(task_vars, "llama_profile"))
        facts = {
            "profile": (report.profile_lines, "llama_profile"),
            "enabled": (report.enabled_lines, "llama_plan"),
            "launch": (report.launch_lines, "llama_plan"),
        }
        lines, fact = facts[step]
        return lines(fact_of(task_vars, fact))


def _warnings(step: str, arguments: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return the warnings of modules: Ansible hides those of tasks that changed nothing."""
    if step == "discovery":
        return [*found.get("llama_runtime", {}).get("warnings", []), *arguments["warnings"]]
    return found["llama_plan"]["warnings"] if step == "launch" else []
