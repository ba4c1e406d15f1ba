# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a host's state on the controller; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.backup import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.backups import HostBackups
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import show


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        backups = HostBackups(check_arguments(self, ARGUMENTS), task_vars, self._loader)
        answer = self.ask("backup", fill_in(self._task.args, known=backups.newest.state), task_vars)
        state = answer.pop("state", None)
        if state is None or answer.get("failed"):
            return {**result, **answer}
        done = backups.keep(state, is_check=self._task.check_mode, is_asked=True)
        if done.path:
            what = "new" if done.is_new else "unchanged"
            show(task_vars, [f"      {what}: {done.path}", *(f"      removed: {time}" for time in done.removed)])
        return {**result, **answer, "changed": done.is_new, "path": done.path or None, "removed": list(done.removed)}
