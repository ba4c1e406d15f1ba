# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows the logs of servers; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._output.report import log_lines
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import ModuleAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show


class ActionModule(ModuleAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = super().run(tmp, task_vars)
        if answer.get("logs") == []:
            show(task_vars or {}, ["no server is deployed here"])
        for log in answer.get("logs", ()):
            # An event goes to more readers, and a log may have what clients sent.
            show(task_vars or {}, log_lines(log), as_events=False)
        return answer
