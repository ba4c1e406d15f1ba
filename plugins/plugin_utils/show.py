# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Print lines while a run is in progress."""

from __future__ import annotations

from typing import Any

from ansible.utils.display import Display


def show(task_vars: dict[str, Any], lines: list[str]) -> None:
    """Print lines, each behind the host's name where the run has several hosts."""
    prefix = f"{task_vars['inventory_hostname']} | " if has_several_hosts(task_vars) else ""
    display = Display()
    for line in "\n".join(lines).splitlines():
        display.display(f"{prefix}{line}")


def has_several_hosts(task_vars: dict[str, Any]) -> bool:
    return len(task_vars.get("ansible_play_hosts_all") or []) > 1
