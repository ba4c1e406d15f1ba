# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module of the same name, telling it what the host cannot know."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in


class ActionModule(ActionBase):
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        profile = arguments.get("profile") or {}
        named = {entry["model"] for entry in profile.get("enabled_models", []) if entry["model"]}
        if self._task.check_mode:
            # The scan before was a check too, so the file may be an old one, or none. Where it is as the scan found it,
            # the fact may be short.
            registry = task_vars["ansible_facts"]["llama_registry"]
            if all("memory" in model for model in registry["models"]):
                arguments.setdefault("registry", registry)
        missing = named - _ids(task_vars)
        if missing:
            # The other hosts' registries are facts here and nowhere else.
            hosts = [task_vars["hostvars"][host] for host in task_vars.get("ansible_play_hosts_all", [])]
            elsewhere = {name for host_vars in hosts for name in _ids(host_vars)}
            arguments = fill_in(arguments, known_elsewhere=sorted(missing & elsewhere))
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        return result


def _ids(host_vars: Any) -> set[str]:
    registry = (host_vars.get("ansible_facts") or {}).get("llama_registry") or {}
    return {model["id"] for model in registry.get("models", [])}
