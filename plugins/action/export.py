# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the planned servers of all hosts in another program's format; documented in the module of the same name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.export import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import plain_path
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_text, visible_value
from ansible_collections.magi.llama.plugins.module_utils._export.folder import apply, change_of
from ansible_collections.magi.llama.plugins.module_utils._export.formats import find_format
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import HostPlan, Settings, workloads_of
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.export_text import to_text
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.host_results import failure, host_result
from ansible_collections.magi.llama.plugins.plugin_utils.playbooks import as_called
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show

# Registered by export.yml.
LINKS = "__export_links"
# Registered by the role runtime.
RUNTIME = "__runtime_provided"


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        given = check_arguments(self, ARGUMENTS, paths_of_host=False)
        # Of a link the folder that it leads to, as the user names it.
        folder = plain_path(os.path.abspath(os.path.expanduser(given["folder"])))
        names = ("image", "gateway_image", "binary", "claim", "secret", "access_mode")
        settings = Settings(**{name: given[name] for name in names})
        try:
            workloads, warnings = workloads_of(_plans(task_vars), settings)
            form = find_format(given["format"])
            texts = {path: to_text(path, content) for path, content in form.render(workloads, settings).items()}
            change = change_of(folder, given["format"], texts)
            if not self._task.check_mode:
                apply(folder, change)
        except MagiError as error:
            raise AnsibleActionFail(as_called(visible_text(str(error)))) from error
        except OSError as error:
            raise AnsibleActionFail(f"export_dir {folder} cannot be written: {error.strerror}.") from error
        show(task_vars, [f"{WARNING}{visible_text(text)}" for text in [*warnings, *form.notes(workloads, settings)]])
        show(task_vars, _summary(folder, len(workloads), len(change.write), len(change.remove), form.use))
        return {
            **result,
            "changed": change.is_needed,
            "folder": folder,
            "written": [file.path for file in change.write],
            "removed": change.remove,
            "servers": [f"{one.host}/{one.name}" for one in workloads],
            "diff": change.diff,
        }


def _plans(task_vars: Mapping[str, Any]) -> list[HostPlan]:
    """The plans of the hosts of the run. Raises AnsibleActionFail where one has none: a part would look like all."""
    found = []
    for name in task_vars["ansible_play_hosts_all"]:
        host_vars = task_vars["hostvars"][name]
        plan, registry = host_result("plan", host_vars), host_result("scan", host_vars)
        if failure(host_vars) or "servers" not in plan:
            raise AnsibleActionFail(
                f"{name} could not be planned, and nothing was written, as its servers would be missing: fix what it "
                "reports above, or leave it out with target."
            )
        busy = host_vars.get("servers_cpu_expected_busy")
        found.append(
            HostPlan(
                str(name),
                str(host_vars.get("ansible_host") or name),
                visible_value(plan),
                list(registry.get("scan_paths") or ()),
                int(busy) if str(busy or "").isdecimal() else None,
                _real_paths(host_vars.get(LINKS) or {}),
                visible_value(dict(registry)),
                visible_value(_runtime(host_vars)),
            )
        )
    return found


def _runtime(host_vars: Mapping[str, Any]) -> dict[str, Any]:
    """The fact llama_runtime of this run; empty where the step was left out."""
    return dict(((host_vars.get(RUNTIME) or {}).get("ansible_facts") or {}).get("llama_runtime") or {})


def _real_paths(answer: Mapping[str, Any]) -> dict[str, str]:
    """Paths without links by path, of an answer with each path in a line, and without links in the next."""
    lines = visible_value(list(answer.get("stdout_lines") or ()))
    return {path: real for path, real in zip(lines[::2], lines[1::2]) if real}


def _summary(folder: str, servers: int, written: int, removed: int, use: str) -> list[str]:
    counts = f"{written} files written, {removed} removed" if written or removed else "nothing to change"
    return [
        f"export  {servers} server{'' if servers == 1 else 's'} in {folder}: {counts}",
        f"use     {use.replace('FOLDER', folder)}",
    ]
