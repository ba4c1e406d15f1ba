# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module of the same name, which documents it, and waits for other runs where it is to take the lock."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import WAITING
from ansible_collections.magi.llama.plugins.plugin_utils.hold import acquire_with_wait

MODULE = "magi.llama.host_facts"


class ActionModule(ActionBase):
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _result, checked = self.validate_argument_spec(
            argument_spec={
                "service_manager": {"type": "str"},
                "user": {"type": "str"},
                # Of the host: a ~ is the home there, so it is not expanded here.
                "state_dir": {"type": "str"},
                "supervisord_path": {"type": "str"},
                "api_key_file": {"type": "str", "no_log": False},
                "user_groups": {"type": "list", "elements": "str"},
                "validate_launch": {"type": "bool", "default": False},
                "lock": {"type": "bool", "default": False},
                **WAITING,
            }
        )
        # Without `lock` it returns at once.
        answer = acquire_with_wait(self, MODULE, self._task.args, task_vars, checked["wait"], checked["take_over"])
        return {**result, **answer}
