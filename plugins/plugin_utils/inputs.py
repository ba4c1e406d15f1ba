# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Variables that decide what a run does: they are set by -e, plays and inventories, never by facts of a host.

With Ansible's default inject_facts_as_vars each fact of a host is a variable too, and wins over the inventory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail

# Variables of the roles and playbooks, and those of Ansible from which paths on the controller are made.
INPUT = re.compile(
    r"(_{0,2}(servers|registry|runtime|rollout|rollback|verify|gateway|console|redis|export|backup|models)|__llama|__playbook)_\w+"
    r"|apply|at|format|target|profile|rollout|servers|lines|since|output|output_file|output_log|fail_on"
    r"|inventory_dir|inventory_file"
)


def inputs_from_facts(host_vars: Mapping[str, Any]) -> list[str]:
    """Names of the inputs whose value is a fact of the host."""
    facts = host_vars.get("ansible_facts") or {}
    return sorted(
        name
        for name in facts
        # A fact that -e or a play overrides decides nothing.
        if INPUT.fullmatch(str(name)) and name in host_vars and host_vars[name] == facts[name]
    )


def refuse_inputs_from_facts(host_vars: Mapping[str, Any]) -> None:
    """Raise AnsibleActionFail where a fact of the host has the name of an input."""
    names = inputs_from_facts(host_vars)
    if names:
        raise AnsibleActionFail(
            f"The host has reported facts with names of this collection's variables: {', '.join(names)}. A host does "
            "not set them. Find out which module returned them, clear the fact cache if there is one, and set the "
            "variables in the inventory, in the play or with -e."
        )


def decided(name: str, host_vars: Mapping[str, Mapping[str, Any]], default: Any = None) -> Any:
    """An input that holds for the whole run: its value on the first host that has it not from a fact."""
    for one in host_vars.values():
        if name in one and name not in inputs_from_facts(one):
            return one[name]
    return default
