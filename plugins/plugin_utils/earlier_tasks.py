# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What tasks need of earlier ones, which --start-at-task and tags may leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.plugin_utils.show import BEGUN

LEFT_OUT = (
    "Earlier tasks of this run were left out (--start-at-task or tags), and with them what this task works with. "
    "Run the playbook from its beginning: what is done already is left as it is."
)


def fact_of(task_vars: Mapping[str, Any], name: str) -> Any:
    """Return a fact of the collection. Raises AnsibleActionFail if no task has set it."""
    try:
        return task_vars["ansible_facts"][name]
    except KeyError as error:
        raise AnsibleActionFail(f"The fact {name} is missing. {LEFT_OUT}") from error


def begun(task_vars: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the first task of a playbook of the collection has registered. Raises AnsibleActionFail."""
    if BEGUN not in task_vars:
        raise AnsibleActionFail(LEFT_OUT)
    found: Mapping[str, Any] = task_vars[BEGUN]
    return found
