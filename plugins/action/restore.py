# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a host's state from a backup on the controller; documented in the module of the same name."""

from __future__ import annotations

from typing import Any

from ansible_collections.magi.llama.plugins.module_utils._archive.archive import ENCRYPTED_KEYS
from ansible_collections.magi.llama.plugins.module_utils._archive.state import packed
from ansible_collections.magi.llama.plugins.module_utils._arguments import backup
from ansible_collections.magi.llama.plugins.module_utils._arguments.restore import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.backups import HostBackups
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.this_run import this_run


class ActionModule(HostAction):
    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = check_arguments(self, ARGUMENTS)
        backups = HostBackups(given, task_vars, self._loader)
        # Before the present state is kept, which is then the latest one.
        archive, files = backups.load(given["at"], with_keys=given["keys"])
        arguments = {name: value for name, value in self._task.args.items() if name in backup.ARGUMENTS.options}
        answer = self.ask("backup", fill_in(arguments, known=backups.newest.state), task_vars)
        state = answer.pop("state", None)
        if state is None or answer.get("failed"):
            return {**result, **answer}
        kept = False
        if state["digest"]:
            # Where the host then fails, the chosen one is needed again.
            spare = archive.taken_at
            kept = backups.keep(state, is_check=self._task.check_mode, is_needed=True, spare=spare).is_new
        filled = fill_in(self._task.args, files=packed(files), run_id=this_run(task_vars["inventory_hostname"])["id"])
        answer = self.ask("restore", filled, task_vars)
        if answer.get("failed") and kept and not self._task.check_mode:
            answer["msg"] = (
                f"{answer.get('msg', '')} Try again with at={archive.taken_at}: latest is the present state."
            )
        elif not answer.get("failed"):
            what = f"{len(answer['written'])} files" if answer["written"] else "nothing to change"
            show(task_vars, [f"      state of {archive.taken_at}: {what}"])
            if given["keys"] and ENCRYPTED_KEYS not in archive.files:
                show(task_vars, [f"{WARNING}The backup of {archive.taken_at} has no API keys: those of the host stay."])
        return {**result, **answer, "taken_at": archive.taken_at}
