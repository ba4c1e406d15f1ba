# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a playbook's extra variables before it touches a host; documented in the module of the same name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.lookup.inventory_hostnames import LookupModule
from ansible.utils.vars import load_extra_vars
from ansible_collections.magi.llama.plugins.module_utils._arguments.playbook_begin import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import model_hosts
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import nearest
from ansible_collections.magi.llama.plugins.plugin_utils.approved import read_approved
from ansible_collections.magi.llama.plugins.plugin_utils.arguments import check_arguments
from ansible_collections.magi.llama.plugins.plugin_utils.extra_vars import errors, load_spec, words
from ansible_collections.magi.llama.plugins.plugin_utils.golden_prompts import read_prompts
from ansible_collections.magi.llama.plugins.plugin_utils.host_action import HostAction
from ansible_collections.magi.llama.plugins.plugin_utils.inputs import decided, inputs_from_facts
from ansible_collections.magi.llama.plugins.plugin_utils.inventory_places import misplaced
from ansible_collections.magi.llama.plugins.plugin_utils.rollout_file import hosts_to_return
from ansible_collections.magi.llama.plugins.plugin_utils.show import WARNING, show
from ansible_collections.magi.llama.plugins.plugin_utils.silent_hosts import advice, without_keep_alive
from ansible_collections.magi.llama.plugins.plugin_utils.variable_names import (
    extra_var_errors,
    host_var_errors,
    not_taken_errors,
)

NO_HTTPX = "verify_from=controller needs httpx on the controller: pip install httpx, or set verify_from=host."


class ActionModule(HostAction):
    _requires_connection = False
    _is_about_host = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = check_arguments(self, ARGUMENTS, paths_of_host=False)
        spec = load_spec()
        book = spec["playbooks"][arguments["playbook"]]
        options = {name: spec["variables"][name] for name in book["variables"]}
        hosts = {host: task_vars["hostvars"][host] for host in task_vars["ansible_play_hosts_all"]}
        extra_vars = [str(name) for name in load_extra_vars(self._loader)]
        wrong: dict[str, None] = dict.fromkeys(
            [
                *extra_var_errors(extra_vars),
                *not_taken_errors(spec["playbooks"]),
                *host_var_errors(hosts, extra_vars),
                *self._canary_errors(hosts, task_vars),
                *_httpx_errors(options, hosts),
                *(_apply_errors(hosts, task_vars) if "apply" in options else ()),
                *(_rollout_errors(hosts) if "rollout" in options else ()),
                *(self._prompts_errors(hosts) if "rollout_prompts" in options else ()),
            ]
        )
        wrong.update(dict.fromkeys(_missing(arguments["playbook"], book.get("required", ()), options, hosts)))
        for host_vars in hosts.values():
            # A host with inputs among its facts fails at its first task, and not the others here.
            given = options.keys() & host_vars.keys() - set(inputs_from_facts(host_vars))
            wrong.update(dict.fromkeys(errors(options, {name: host_vars[name] for name in options if name in given})))
        if wrong:
            raise AnsibleActionFail("\n".join(wrong))
        own = [one.get("inventory_dir") for one in hosts.values() if "inventory_dir" not in inputs_from_facts(one)]
        show(task_vars, [f"{WARNING}{text}" for text in misplaced(own)])
        silent = without_keep_alive(hosts)
        if silent:
            show(task_vars, [f"{WARNING}{advice(silent)}"])
        # Not a fact: Ansible gives all hosts of a run_once task the same facts object, which later facts would change.
        return {
            **result,
            "changed": False,
            "started": time.time(),
            # For the run as a whole: what a host reports later changes neither.
            "output": decided("output", hosts, "table") if "output" in options else "table",
            "rollout_hosts": _hosts_of_rollout(hosts) if "rollout" in options else [],
            "output_file": decided("output_file", hosts) if "output_file" in options else None,
        }

    def _canary_errors(self, hosts: dict[str, Any], task_vars: dict[str, Any]) -> list[str]:
        """Return an error if the canary is not a host of the run: Ansible would only warn, or add it to the run."""
        canary, target = decided("rollout_canary", hosts), decided("target", hosts)
        if canary is None:
            return []
        if target is None:
            of_target = set(model_hosts(task_vars["groups"]))
        else:
            lookup = LookupModule(loader=self._loader, templar=self._templar)
            of_target = set(lookup.run(target if isinstance(target, list) else [target], variables=task_vars))
        names = [name for name in hosts if name in of_target]
        if canary in names:
            return []
        return [f'rollout_canary is "{canary}", which is not a host of this run: {nearest(str(canary), names)}']

    def _prompts_errors(self, hosts: dict[str, Any]) -> list[str]:
        """Return an error for each file of golden prompts that cannot be used: hosts are changed before they are."""
        given = [
            one["rollout_prompts"]
            for one in hosts.values()
            if "rollout_prompts" not in inputs_from_facts(one) and "rollout_prompts" in one
        ]
        wrong = []
        for path in dict.fromkeys(str(one) for one in given):
            try:
                read_prompts(self._loader, path)
            except AnsibleActionFail as error:
                wrong.append(str(error))
        return wrong


def _httpx_errors(options: dict[str, Any], hosts: dict[str, Any]) -> list[str]:
    """Return an error if only the controller is to send probes and it cannot: hosts are changed before that."""
    asks = "verify_from" in options and any(one.get("verify_from") == "controller" for one in hosts.values())
    return [NO_HTTPX] if asks and find_spec("httpx") is None else []


def _rollout_errors(hosts: dict[str, Any]) -> list[str]:
    """Return an error if the rollout that is to be undone cannot be read, or has changed no host of the run."""
    try:
        _hosts_of_rollout(hosts)
    except AnsibleActionFail as error:
        return [str(error)]
    return []


def _hosts_of_rollout(hosts: dict[str, Any]) -> list[str]:
    """Return the hosts of the run that the rollout to be undone has changed; empty if none is named."""
    given = decided("rollout", hosts)
    return [] if given is None else hosts_to_return(given, hosts)


def _apply_errors(hosts: dict[str, Any], task_vars: dict[str, Any]) -> list[str]:
    """Return an error if a plan is to be applied that cannot be read, or only with some tags."""
    given = decided("apply", hosts)
    if given is None:
        return []
    if list(task_vars.get("ansible_run_tags") or ["all"]) != ["all"] or task_vars.get("ansible_skip_tags"):
        return ["apply does all that the plan has: leave out --tags and --skip-tags."]
    try:
        read_approved(given)
    except AnsibleActionFail as error:
        return [str(error)]
    return []


def _missing(playbook: str, required: Sequence[str], options: dict[str, Any], hosts: dict[str, Any]) -> list[str]:
    """Return an error for each variable that the playbook requires and a host does not have."""
    return [
        f"{playbook} needs the variable {name}: {options[name]['description'].replace('`', '')}"
        for name in required
        for host_vars in hosts.values()
        if name not in host_vars or name in inputs_from_facts(host_vars) or not words(host_vars[name])
    ]
