# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""What waiting for servers needs of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .._core.processes import all_processes
from .._services.base import ServiceDriver, ServiceStatus
from .probe import DEEP_TIMEOUT, Probe, Server, probe_all


class Machine:
    """Reads the servers' status, health, uptime and logs while they are waited for."""

    def __init__(
        self,
        manager: ServiceDriver,
        state_dir: str,
        deep: bool = False,
        deep_timeout: float | None = None,
        unreadable: Callable[[Sequence[str]], Sequence[str]] | None = None,
    ) -> None:
        """unreadable returns the paths that the servers' user may not read outside a sandbox; None without one."""
        self._manager = manager
        self._state_dir = state_dir
        self._deep = deep
        self._unreadable = unreadable
        self._deep_timeout = deep_timeout or DEEP_TIMEOUT

    def status(self, names: Sequence[str]) -> dict[str, ServiceStatus]:
        return self._manager.status(names)

    def probe(self, servers: Sequence[Server], pids: Mapping[str, int | None]) -> dict[str, Probe]:
        return probe_all(servers, pids, deep=self._deep, deep_timeout=self._deep_timeout)

    def uptime(self, pid: int) -> float | None:
        return next((process.uptime_seconds for process in all_processes(self._state_dir, pids=[pid])), None)

    def log_tail(self, name: str, lines: int) -> list[str]:
        return self._manager.log_tail(name, lines)

    def is_readable(self, path: str) -> bool:
        """Return whether the servers' user may read a file that a sandbox may hide; false without one."""
        return self._unreadable is not None and not self._unreadable([path])
