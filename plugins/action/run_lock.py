# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waits for other runs on a host, and identifies this run; the module of the same name documents it."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.run_lock import ARGUMENTS
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.hold import acquire_with_wait
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction

MODULE = "magi.llama.run_lock"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        checked = check_arguments(self, ARGUMENTS)
        answer = acquire_with_wait(self, MODULE, self._task.args, task_vars, checked["wait"], checked["take_over"])
        return {**result, **answer}
