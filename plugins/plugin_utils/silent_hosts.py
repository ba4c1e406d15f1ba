# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this plugin_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""Whether a host that falls silent can hold a run for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible import constants
from ansible.plugins.loader import connection_loader

KEEP_ALIVE = "serveraliveinterval"
OPTIONS = ("ssh_args", "ssh_common_args", "ssh_extra_args")
ADVICE = (
    "ssh has no ServerAliveInterval for {hosts}: a host that falls silent during a task holds this run for hours. Add "
    "to ansible.cfg, below [ssh_connection]: "
    "ssh_args = -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
)


def without_keep_alive(hosts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts that are reached by ssh without a limit on its silence; hosts are their variables by name.

    What ~/.ssh/config has is not seen.
    """
    # Loading the plugin makes its options known.
    connection_loader.get("ssh", class_only=True)
    found = []
    for name, variables in hosts.items():
        transport = str(variables.get("ansible_connection", constants.DEFAULT_TRANSPORT))
        if transport not in ("ssh", "smart", "ansible.builtin.ssh"):
            continue
        texts = (
            constants.config.get_config_value(option, plugin_type="connection", plugin_name="ssh", variables=variables)
            for option in OPTIONS
        )
        if KEEP_ALIVE not in " ".join(str(text or "") for text in texts).lower():
            found.append(name)
    return found


def advice(hosts: list[str]) -> str:
    """Return the warning about these hosts."""
    return ADVICE.format(hosts=", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else ""))
