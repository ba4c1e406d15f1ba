# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a playbook's extra variables before it touches a host; documented in the module of the same name."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._arguments.playbook_begin import ARGUMENTS
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import errors, load_spec
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.inputs import decided, inputs_from_facts


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        spec = load_spec()
        options = {name: spec["variables"][name] for name in spec["playbooks"][arguments["playbook"]]["variables"]}
        wrong: dict[str, None] = {}
        hosts = {host: task_vars["hostvars"][host] for host in task_vars["ansible_play_hosts_all"]}
        for host_vars in hosts.values():
            # A host with inputs among its facts fails at its first task, and not the others here.
            given = options.keys() & host_vars.keys() - set(inputs_from_facts(host_vars))
            wrong.update(dict.fromkeys(errors(options, {name: host_vars[name] for name in options if name in given})))
        if wrong:
            raise AnsibleActionFail(" ".join(wrong))
        # Not a fact: Ansible gives all hosts of a run_once task the same facts object, which later facts would change.
        return {
            **result,
            "changed": False,
            "started": time.time(),
            # For the run as a whole: what a host reports later changes neither.
            "output": decided("output", hosts, "table") if "output" in options else "table",
            "output_file": decided("output_file", hosts) if "output_file" in options else None,
        }
