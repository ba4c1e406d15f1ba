# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for servers in short module calls, showing each as it becomes idle; the module of its name documents it."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.wait_until_idle import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._health.idle import idleness_text, summary
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.wait_in_slices import GRACE_SECONDS, in_slices


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        checked = check_arguments(self, ARGUMENTS)
        if not checked["servers"]:
            return {**result, "changed": False, "servers": [], **summary([])}
        answer = in_slices(
            self,
            "wait_until_idle",
            dict(self._task.args),
            task_vars or {},
            limit=checked["timeout"] + GRACE_SECONDS,
            lines=_lines,
            events=_event,
        )
        return {**result, **answer, **(summary(answer["servers"]) if "servers" in answer else {})}


def _lines(settled: list[dict[str, Any]], width: int) -> list[str]:
    return [f"      {server['name']:<{width}}  {idleness_text(server)}" for server in settled]


def _event(server: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    return ("drained", {"server": server["name"], "seconds": server["seconds"]}) if server["idle"] else None
