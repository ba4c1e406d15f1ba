# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the host's answer to what the module of the same name returns, which documents it, and reports the status."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.plugin_utils.events import event
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import ModuleAction


class ActionModule(ModuleAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = super().run(tmp, task_vars)
        # Of some servers only it would be taken for all that the host has.
        if "status" in answer and not self._task.args.get("servers"):
            event(task_vars or {}, "status", {"status": without_logs(answer["status"])})
        return answer


def without_logs(status: dict[str, Any]) -> dict[str, Any]:
    """A status without the logs of servers: an event goes to more readers, who keep many of them."""
    servers = [{key: value for key, value in one.items() if key != "log"} for one in status["servers"]]
    return {**status, "servers": servers}
