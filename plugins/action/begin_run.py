# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module of the same name, which documents it, waits for the run that has the lock, and keeps a backup."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._arguments import backup
from ansible_collections.magi.llama.plugins.module_utils._arguments.begin_run import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments, check_option
from ansible_collections.magi.llama.plugins.plugin_utils.backups import HostBackups
from ansible_collections.magi.llama.plugins.plugin_utils.hold import acquire_with_wait
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction

MODULE = "magi.llama.begin_run"


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        checked = check_arguments(self, ARGUMENTS)
        arguments, backups = dict(self._task.args), None
        if checked["backup"] is not None:
            given = check_option("backup", {**checked["backup"], "state_dir": checked["state_dir"]}, backup.ARGUMENTS)
            backups = HostBackups(given, task_vars, self._loader)
            arguments = fill_in({**arguments, "backup": given}, known=backups.newest.state)
        answer = acquire_with_wait(self, MODULE, arguments, task_vars, checked["wait"], checked["take_over"])
        state = answer.pop("state", None)
        if backups is not None and state is not None and not answer.get("failed"):
            # Under the lock, and an error here ends the run before anything is changed.
            backups.keep(state, is_check=self._task.check_mode)
            if "files" in state and answer.get("changed"):
                # The key file has waited for the backup.
                arguments = {name: value for name, value in self._task.args.items() if name != "backup"}
                answer = acquire_with_wait(self, MODULE, arguments, task_vars, checked["wait"], checked["take_over"])
        return {**result, **answer}
