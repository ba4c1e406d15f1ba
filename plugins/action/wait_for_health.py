# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for servers in short module calls, showing each as it becomes ready; the module of its name documents it."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.wait_for_health import ARGUMENTS
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.wait_in_slices import wait_in_slices


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        checked = check_arguments(self, ARGUMENTS)
        answer = wait_in_slices(self, arguments, task_vars or {})
        if "failed_servers" in answer and answer["failed_servers"] and not self._task.check_mode:
            answer["failed"] = bool(answer["unprotected_servers"]) or not checked["allow_degraded"]
        return {**result, **answer}
