# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The host's service manager by its name, and what the modules see of the machine through it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .base import ServiceManager
from .supervision import is_ours
from .transitions import DEFAULT_STOP_TIMEOUT


def manager_for(record: Mapping[str, Any], state_dir: str, supervisord: str | None = None) -> ServiceManager:
    """The manager of the deployed servers; where none is deployed, one that knows of none."""
    # One of them is needed, and a module compiles at every call what it imports.
    if record["service_manager"] == "systemd":
        from .systemd import SystemdManager

        return SystemdManager()
    from .supervisor import SupervisorManager

    return SupervisorManager(state_dir, supervisord)


def retire_other(record: Mapping[str, Any], state_dir: str) -> None:
    """End what a host has gone over from, supervisord or units, with its servers: it would start them again."""
    timeout = max((float(server["stop_timeout"]) for server in record["servers"]), default=DEFAULT_STOP_TIMEOUT)
    if record["service_manager"] == "systemd" and is_ours(state_dir):
        from .supervisor import SupervisorManager

        SupervisorManager(state_dir).end(timeout)
    if record["service_manager"] == "supervisor" and os.geteuid() == 0:
        from .systemd import SystemdManager

        SystemdManager().retire(timeout)
