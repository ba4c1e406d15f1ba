# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Print lines while a run is in progress."""

from __future__ import annotations

import re
from typing import Any

from ansible import constants
from ansible.utils.display import Display
from ansible_collections.magi.llama.plugins.module_utils._core.text import visible_lines
from ansible_collections.magi.llama.plugins.plugin_utils.events import event

# Set by the collection's own plays: the name of their playbook.
PLAYBOOK = "__llama_playbook"
# What their first task, playbook_begin, has registered.
BEGUN = "__llama_begun"
# How a line begins that warns.
WARNING = "      warning  "
# Callbacks that print one document, or one in each line: json, ansible.posix.json, jsonl.
OF_PROGRAMS = re.compile(r"(.*[._])?jsonl?")


def show(task_vars: dict[str, Any], lines: list[str], *, prefixed: bool | None = None, as_events: bool = True) -> None:
    """Print lines, with the host's name in front if the run has several hosts; nothing if a document is all.

    prefixed says whether the name is in front, for any number of hosts; lines without it are about the run. In
    any case each line is an event, unless as_events is false.
    """
    about = None if prefixed is False else task_vars
    for text in lines if as_events else ():
        kind, shown = ("warning", text.removeprefix(WARNING)) if text.startswith(WARNING) else ("line", text)
        event(about, kind, {"text": "\n".join(visible_lines(shown))})
    if prints_document(task_vars):
        return
    several = len(task_vars.get("ansible_play_hosts_all") or []) > 1
    prefix = f"{task_vars['inventory_hostname']} | " if (several if prefixed is None else prefixed) else ""
    display = Display()
    for text in lines:
        for line in visible_lines(text):
            display.display(f"{prefix}{line}")


def prints_document(task_vars: dict[str, Any]) -> bool:
    """Whether a JSON document is printed instead of the lines, by us or by Ansible's callback.

    `output` is ours in the collection's own playbooks only: elsewhere it may be an unrelated variable.
    """
    return is_read_by_program() or (PLAYBOOK in task_vars and (task_vars.get(BEGUN) or {}).get("output") == "json")


def is_read_by_program() -> bool:
    """Whether what Ansible prints is a document as a whole, which a line of ours would damage."""
    return bool(OF_PROGRAMS.fullmatch(str(constants.DEFAULT_STDOUT_CALLBACK)))
