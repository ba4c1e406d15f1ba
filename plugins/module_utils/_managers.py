# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's service manager by its name, and what the modules see of the machine through it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import MagiError
from ._health import DEEP_TIMEOUT, Probe, Server, probe_all
from ._proc import all_processes
from ._service import ServiceManager, ServiceStatus
from ._state import DEFAULT_STOP_TIMEOUT
from ._watch import is_ours


class UnknownServerError(MagiError):
    """A name that no deployed server has."""


def manager_for(record: Mapping[str, Any], state_dir: str, supervisord: str | None = None) -> ServiceManager:
    """The manager of the deployed servers; where none is deployed, one that knows of none."""
    # One of them is needed, and a module compiles at every call what it imports.
    if record["service_manager"] == "systemd":
        from ._systemd import SystemdManager

        return SystemdManager()
    from ._supervisor import SupervisorManager

    return SupervisorManager(state_dir, supervisord)


def chosen(record: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The named servers of the record, all of them where no name is given. Raises UnknownServerError."""
    servers = {str(server["name"]): server for server in record["servers"]}
    unknown = [name for name in names or () if name not in servers]
    if unknown:
        raise UnknownServerError(
            f"No server {', '.join(unknown)} is deployed here; there are: {', '.join(sorted(servers)) or 'none'}."
        )
    return [servers[name] for name in names] if names else list(servers.values())


def retire_other(record: Mapping[str, Any], state_dir: str) -> None:
    """End what a host has gone over from, supervisord or units, with its servers: it would start them again."""
    timeout = max((float(server["stop_timeout"]) for server in record["servers"]), default=DEFAULT_STOP_TIMEOUT)
    if record["service_manager"] == "systemd" and is_ours(state_dir):
        from ._supervisor import SupervisorManager

        SupervisorManager(state_dir).end(timeout)
    if record["service_manager"] == "supervisor" and os.geteuid() == 0:
        from ._systemd import SystemdManager

        SystemdManager().retire(timeout)


class Machine:
    """The machine as waiting sees it."""

    def __init__(
        self, manager: ServiceManager, state_dir: str, deep: bool = False, deep_timeout: float | None = None
    ) -> None:
        self._manager = manager
        self._state_dir = state_dir
        self._deep = deep
        self._deep_timeout = deep_timeout or DEEP_TIMEOUT

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        return self._manager.status(names)

    def probe(self, servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Probe]:
        return probe_all(servers, pids, deep=self._deep, deep_timeout=self._deep_timeout)

    def uptime(self, pid: int) -> float | None:
        return next((process.uptime_seconds for process in all_processes(self._state_dir, pids=[pid])), None)

    def log_tail(self, name: str, lines: int) -> list[str]:
        return self._manager.log_tail(name, lines)
