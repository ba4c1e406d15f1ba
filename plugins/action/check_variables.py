# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks variables against the roles' argument specs; documented in the module of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.magi.llama.plugins.module_utils._arguments.check_variables import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._plan.variables import EXPLAINED, setting_errors
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.variable_names import host_var_errors

ROLES = Path(__file__).parents[2] / "roles"


class ActionModule(HostAction):
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        options: dict[str, Any] = {}
        for role, entry_point in check_arguments(self, ARGUMENTS)["entry_points"].items():
            options.update(self._options(role, entry_point))
        # Only variables that are set: the others have their role's default.
        given = self._templar.template({name: value for name, value in (task_vars or {}).items() if name in options})
        host = (task_vars or {}).get("inventory_hostname", "")
        # Without the variables of plays and of other roles, whose names are their own matter.
        inventory = {host: task_vars["hostvars"][host]} if task_vars and host in task_vars["hostvars"] else {}
        wrong = [*host_var_errors(inventory, ()), *variable_errors(options, given)]
        if wrong:
            raise AnsibleActionFail("\n".join(wrong))
        return {**result, "changed": False}

    def _options(self, role: str, entry_point: str) -> dict[str, Any]:
        specs = self._loader.load_from_file(str(ROLES / role / "meta/argument_specs.yml"))["argument_specs"]
        if entry_point not in specs:
            raise AnsibleActionFail(f"The role {role} has no entry point {entry_point}; it has: {', '.join(specs)}.")
        options: dict[str, Any] = specs[entry_point]["options"]
        return options


def variable_errors(options: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Return an error for each variable that violates its argument spec or a rule between variables."""
    left = {name: option for name, option in options.items() if name not in EXPLAINED}
    checked = ArgumentSpecValidator(left).validate({name: value for name, value in given.items() if name in left})
    wrong = [f"{message[:1].upper()}{message[1:]}." for message in checked.error_messages]
    return [*wrong, *setting_errors({**given, **checked.validated_parameters})]
